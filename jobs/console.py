"""What a person sees: progress with an ETA on stderr, results on stdout, and one JSON document for scripts."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cluster.schema import plain

WIDE = 1000  # columns where stdout is no terminal: a row stays one line, so that grep and cut can have it
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
LINE_EVERY_S = 10.0  # where no terminal redraws a bar, a line at least this often


def duration(seconds: float) -> str:
    """A length of time as a person reads it: `45 s`, `12 min`, `3.4 h`, `2.1 days`."""
    for unit, length, digits in (("days", 86400.0, 1), ("h", 3600.0, 1), ("min", 60.0, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def usd(amount: float) -> str:
    """An amount of money as a person reads it, with four digits below a dollar."""
    if 0 < amount < 0.0001:
        return "under $0.0001"
    return f"${amount:,.0f}" if amount >= 1000 else f"${amount:.2f}" if amount >= 1 else f"${amount:.4f}"


def shown(text: str) -> str:
    """`text` without what steers a terminal: names of classes, tasks and files may come from others."""
    return text.translate(_CONTROLS)


class Bar:
    """One phase under way; `update` may be called as often as you like."""

    def __init__(self, name: str, rich: RichConsole, bar: Progress | None, task: TaskID | None) -> None:
        self._name = name
        self._rich = rich
        self._bar = bar
        self._task = task
        self._began = time.monotonic()
        self._total: int | None = None
        self._first = 0
        self._printed = self._began

    def update(self, done: int, total: int, detail: str = "") -> None:
        """Show `done` of `total`; work done before the first call, or the first of this total, does not count for the ETA."""
        now = time.monotonic()
        if total != self._total:
            self._total, self._first, self._began = total, done, now
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, detail=detail)
        elif now - self._printed >= LINE_EVERY_S:
            self._printed = now
            self._rich.print(f"  {self._name}: {done}/{total} {detail} {self._eta(done, total, now)}".rstrip())

    def _eta(self, done: int, total: int, now: float) -> str:
        gained = done - self._first
        return f"ETA {(now - self._began) / gained * (total - done):.0f} s" if gained else ""


class Console:
    """Where a job writes. `is_json`: stdout carries nothing but one JSON document."""

    def __init__(self, *, is_json: bool = False) -> None:
        self.is_json = is_json
        width = None if sys.stdout.isatty() else WIDE
        self._err = RichConsole(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._stdout = sys.stdout  # this one, because within a session of Ray it is not for Ray's warnings
        self._out = RichConsole(
            file=self._stdout, markup=False, emoji=False, highlight=False, soft_wrap=True, width=width
        )
        self.phases: dict[str, float] = {}

    def say(self, text: str) -> None:
        """A line of what happens, on stderr."""
        self._err.print(shown(text))

    def tell(self, text: str) -> None:
        """A line of what was found, on stdout; silent when stdout carries JSON."""
        if not self.is_json:
            self._out.print(shown(text))

    def table(self, title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], *, num_texts: int = 1) -> None:
        """A table on stdout, the first `num_texts` columns to the left; silent when stdout carries JSON."""
        if self.is_json:
            return
        table = Table(title=shown(title), title_justify="left", box=None, pad_edge=False)
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index < num_texts else "right", overflow="fold")
        for row in rows:
            table.add_row(*(shown(str(cell)) for cell in row))
        self._out.print(table)

    def document(self, value: Mapping[str, Any]) -> None:
        """The one JSON document on stdout; silent otherwise. Numbers that are not finite become texts, as in the store."""
        if self.is_json:
            self._stdout.write(json.dumps(plain(value), indent=2, sort_keys=True, allow_nan=False) + "\n")

    @contextmanager
    def phase(self, name: str) -> Iterator[Bar]:
        """A named and timed part of a job, with a progress bar; the time ends up in `phases`."""
        began = time.monotonic()
        try:
            if self._err.is_terminal:
                columns = (
                    TextColumn("{task.description:<28}", markup=False),
                    BarColumn(bar_width=32),
                    TextColumn("{task.completed}/{task.total}"),
                    TimeElapsedColumn(),
                    TextColumn("ETA"),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[detail]}", markup=False),
                )
                with Progress(*columns, console=self._err, transient=True) as bar:
                    yield Bar(name, self._err, bar, bar.add_task(name, total=None, detail=""))
            else:
                yield Bar(name, self._err, None, None)
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - began
        self.say(f"{name}: done in {self.phases[name]:.1f} s")
