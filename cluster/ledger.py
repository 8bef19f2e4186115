"""What is known of the trials of a tuning: tuning/<key>/<phase>/<name>.json, one object per trial, overwritten.

Whoever trains a trial writes its object, at each evaluation. Ray Tune's own files are never read again: a tuning that
was killed is a new run of Tune that is told what stands here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cluster.objects import ObjectStore
from cluster.schema import SCHEMA_VERSION, build, decode_json, encode_json
from dass.errors import ObjectNotFoundError
from dass.meta.tuning import Trial
from dass.records import content_id

Phase = Literal["trials", "finals"]


@dataclass(frozen=True)
class TrialLedger:
    """The trials of one phase of the tuning `key`: those that are compared, or the finalists' further seeds."""

    store: ObjectStore
    key: str
    phase: Phase

    def name(self, trial: Trial) -> str:
        """The trial's own name in its phase."""
        return f"{trial.number}" if self.phase == "trials" else f"{trial.number}-{trial.config.seed}"

    def put(self, trial: Trial) -> Trial:
        """Write the trial, over what was known of it, and return it."""
        self.store.put(self._key(self.name(trial)), encode_json({"schema": SCHEMA_VERSION, "value": trial}))
        return trial

    def get(self, planned: Trial) -> Trial:
        """What is known of the trial; `planned` itself when that is nothing."""
        key = self._key(self.name(planned))
        try:
            return build(Trial, decode_json(self.store.get(key), key).get("value") or {}, key)
        except ObjectNotFoundError:
            return planned

    def read(self, planned: Mapping[str, Trial]) -> dict[str, Trial]:
        """What is known of these trials, by name; one that is settled in `planned` is not read again."""
        prefix = self._key("").removesuffix(".json")
        there = {key.removeprefix(prefix).removesuffix(".json") for key in self.store.list(prefix)}
        return {
            name: self.get(trial) if name in there and not trial.is_settled else trial
            for name, trial in planned.items()
        }

    def run_id(self, trial: Trial) -> str:
        """The name of the trial's checkpoints: a finalist goes on from those of the trial that it was."""
        return content_id({"tuning": self.key, "number": trial.number, "seed": trial.config.seed})

    def _key(self, name: str) -> str:
        return f"tuning/{self.key}/{self.phase}/{name}.json"
