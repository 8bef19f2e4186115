"""The command line as a test calls it: the real `main`, in this process or in one of its own."""

import contextlib
import io
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line; fails the test unless there is exactly one, at the end, and no traceback."""
        *before, last = self.err.splitlines() or [""]
        assert last.startswith("error: "), self.err
        assert not any(line.startswith(("error", "Error", "Traceback")) for line in before), self.err
        return last


def call(*args: str | Path) -> Answer:
    """`dass ARGS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    code: str | int | None = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dass", *map(str, args)])
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as ended:
            code = ended.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    assert isinstance(code, int)
    return Answer(code, out.getvalue(), err.getvalue())


def refusal(store: Path, *args: str | Path, code: int = 2) -> str:
    """The one error line of a command that must fail with `code` and change nothing in its store."""
    before, existed = tree(store), store.exists()
    answer = call(*args, "--store", store)
    assert (answer.code, answer.out) == (code, ""), answer
    assert (tree(store), store.exists()) == (before, existed)
    return answer.error.removeprefix("error: ")


def spawn(*args: str | Path) -> Answer:
    """`python -m jobs ARGS` as a process."""
    command = [sys.executable, "-m", "jobs", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def plain_text(shown: str) -> str:
    """What a terminal showed, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, hidden ones too, and every folder; empty where there is none."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}
