"""Faults at random moments: of lanes, queues, drivers and the store, and compactions and readers beside them."""

from collections.abc import Callable

from cluster.compaction import compact
from cluster.database import RunDatabase
from tests.chaos.kernel import Process, World
from tests.chaos.schedule import LEASE_S
from tests.chaos.simulated_cluster import Cluster

CALLS = ("lease", "heartbeat", "complete", "recorded", "fail", "arrive", "reregister")
WRITES = {
    "lane": ("put checkpoints/", "put_if_absent records/", "put_if_absent blobs/", "delete checkpoints/"),
    "queue": ("put_if_absent queue/",),
}  # before or after which a process is killed
FULL_ROWS = 3  # of a packed file


class Faults:
    """Strikes a cluster, which is made with `trap` as its trap and then given to `aim`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._traps: list[tuple[str, str]] = []  # whom, and at which operation
        self._compactions: list[Process] = []

    def aim(self, cluster: Cluster) -> None:
        """Take what is to be struck."""
        self._cluster = cluster

    def strike(self) -> None:
        """Let one of all faults happen."""
        kinds: dict[str, Callable[[], bool]] = {
            "lane killed": lambda: self._kill_one(self._lane_processes()),
            "lane killed between two operations": lambda: self._set_trap("lane"),
            "lane frozen": lambda: self._freeze_one(self._lane_processes()),
            "lane given up while it lives": self._part,
            "queue killed": lambda: self._kill_one(self._cluster.queues),
            "queue killed between two operations": lambda: self._set_trap("queue"),
            "queue frozen": lambda: self._freeze_one(self._cluster.queues),
            "driver killed": lambda: self._kill_one([submission.driver for submission in self._cluster.submissions]),
            "store down": self._store_down,
            "store loses requests": self._store_failing,
            "compaction": self._compact,
            "compaction killed": lambda: self._compact() and self._kill_compaction(),
            "two compactions": lambda: self._compact() and self._compact(),
            "reader": self._read,
        }
        kind = self._world.random.choice(list(kinds))
        if kinds[kind]():
            self._world.counts[kind] += 1
            self._world.note("chance", kind)

    def end(self) -> None:
        """From here on nothing goes wrong."""
        self._cluster.store.failing = 0.0
        self._cluster.store.down_until = 0.0
        self._traps.clear()

    def _lane_processes(self) -> list[Process]:
        return [lane.process for lane in self._cluster.lanes]

    def _living(self, processes: list[Process]) -> Process | None:
        living = [process for process in processes if not process.is_dead]
        return self._world.random.choice(living) if living else None

    def _kill_one(self, processes: list[Process]) -> bool:
        if process := self._living(processes):
            self._cluster.rules.hit(process.name)
            process.kill()
        return process is not None

    def _freeze_one(self, processes: list[Process]) -> bool:
        if process := self._living(processes):
            self._cluster.rules.hit(process.name)
            process.freeze(self._world.random.choice((0.3, 1.0, 3.0)) * LEASE_S)
        return process is not None

    def _part(self) -> bool:
        """A lane is cut off and started again elsewhere, and the old one comes back: two processes of one name."""
        lanes = [lane for lane in self._cluster.lanes if not lane.process.is_dead]
        if lanes:
            lane = self._world.random.choice(lanes)
            self._cluster.rules.hit(lane.process.name)
            lane.process.freeze(self._world.random.choice((0.3, 1.0, 3.0)) * LEASE_S)
            lane.abandon()
        return bool(lanes)

    def _set_trap(self, victim: str) -> bool:
        """Wait for a moment between two operations; counted when it comes."""
        chance = self._world.random
        moments = {f"call {method}{done}" for method in CALLS for done in ("", " done")}
        moments |= {
            f"{write.replace(' ', ' done ' if is_done else ' ')}" for write in WRITES[victim] for is_done in (0, 1)
        }
        self._traps.append((victim, chance.choice(sorted(moments))))
        return False

    def trap(self, who: str, what: str) -> None:
        """Kill a process in the midst of what it does."""
        for trap in self._traps:
            victim, moment = trap
            if what != moment and (what.startswith("call") or not what.startswith(moment)):
                continue
            is_call_to_queue = victim == "queue" and what.startswith("call")
            process = self._world.process if is_call_to_queue else self._named(who)
            if process is not None and process.name.startswith(victim):
                self._traps.remove(trap)
                self._world.counts[f"{victim} killed at: {moment}"] += 1
                self._world.note(process.name, "is killed at", what)
                self._cluster.rules.hit(process.name)
                self._world.at(0, process.kill)
                if process is self._world.process:
                    self._world.park()
                return

    def _named(self, name: str) -> Process | None:
        return next(
            (p for p in [*self._lane_processes(), *self._cluster.queues] if p.name == name and not p.is_dead), None
        )

    def _store_down(self) -> bool:
        self._cluster.store.down_until = self._world.now + self._world.random.uniform(1, 30)
        return True

    def _store_failing(self) -> bool:
        self._cluster.store.failing = self._world.random.choice((0.02, 0.1))
        self._world.at(self._world.random.uniform(5, 40), setattr, self._cluster.store, "failing", 0.0)
        return True

    def _compact(self) -> bool:
        def work() -> None:
            for _ in compact(self._cluster.store, 1.0, full_rows=FULL_ROWS, sleep=self._world.sleep):
                pass

        self._compactions.append(self._cluster.start(f"compaction{len(self._compactions)}", work))
        return True

    def _kill_compaction(self) -> bool:
        process = self._compactions[-1]
        self._world.at(self._world.random.uniform(0, 4), process.kill)
        return True

    def _read(self) -> bool:
        def work() -> None:
            before = dict(self._cluster.rules.winners)
            records = {record.run.id: record for record in RunDatabase(self._cluster.store).scan()}
            for run_id, lease in before.items():
                record = records.get(run_id)
                if record is None or (record.provenance.incarnation, record.provenance.attempt) != lease:
                    self._world.break_rule(
                        f"a reader does not see the record of {run_id}, or another than that of {lease}"
                    )
            if missing := before.keys() - RunDatabase(self._cluster.store).finished_ids():
                self._world.break_rule(f"a reader does not see that {sorted(missing)} are finished")

        self._cluster.start("reader", work)
        return True
