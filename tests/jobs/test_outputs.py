"""Files that verbs write beside the store: where they cannot be, that is said before anything is done."""

import os
from pathlib import Path

import pytest

from tests.jobs.command import refusal

SMOKE = ("--recipe", "smoke")
OUTPUTS = {
    "distil": "student.safetensors",
    "meta-train": "predictor.safetensors",
    "calibrate": "predictor.safetensors",
    "evaluate": "page.html",
    "export": "runs.csv",
    "ship": "folder",
}


@pytest.mark.parametrize("verb", OUTPUTS)
def test_an_output_in_the_working_folder_of_a_submitted_job_is_refused(
    verb: str, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    recipe = () if verb == "export" else SMOKE
    assert refusal(done, verb, *recipe, "--output", OUTPUTS[verb]) == (
        f"--output of a submitted job must be an absolute path, got {OUTPUTS[verb]}; give one that outlives the job"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("verb", OUTPUTS)
def test_an_output_in_a_folder_that_may_only_be_read_is_refused(verb: str, done: Path, tmp_path: Path) -> None:
    (tmp_path / "read").mkdir(mode=0o500)
    output = tmp_path / "read" / OUTPUTS[verb]
    recipe = () if verb == "export" else SMOKE
    assert refusal(done, verb, *recipe, "--output", output) == (
        f"--output must be a path that may be written, got {output}; correct the path or its permissions"
    )


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_trained(done: Path, tmp_path: Path) -> None:
    for output in (tmp_path / "absent" / "student.safetensors", tmp_path):
        assert refusal(done, "distil", *SMOKE, "--output", output) == (
            f"--output must be a file in a folder that exists, got {output}; correct the path"
        )
