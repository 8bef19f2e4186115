import json
import math

import pytest

from jobs import console as module
from jobs.console import Console
from tests.jobs.command import plain_text

ROWS = [("a text that is long", 7, "x"), ("b", 1234, "[y] :ok:")]


def test_a_table_keeps_each_row_on_a_line_where_no_terminal_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 100
    Console().table("Title", ("name", "count", "last"), [*ROWS, (long, 1, "z")])
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[:2] == [["Title"], ["name", "count", "last"]]
    assert lines[2:4] == [["a", "text", "that", "is", "long", "7", "x"], ["b", "1234", "[y]", ":ok:"]]
    assert len(lines) == 5
    assert err == ""


def test_texts_of_a_table_stand_left_and_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table("T", ("name", "count", "last"), ROWS)
    *_, first, second = capsys.readouterr().out.splitlines()
    assert second.startswith("b ")
    assert first.index("7") == second.index("4")
    Console().table("T", ("name", "count", "last"), ROWS, num_texts=3)
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.index("7") == second.index("1")


def test_only_the_document_goes_to_stdout_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(is_json=True)
    console.table("Title", ("name", "count", "last"), ROWS)
    console.tell("found")
    with console.phase("work") as bar:
        bar.update(1, 2)
    console.say("happens")
    console.document({"b": (1, 2), "a": math.nan})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": "NaN", "b": [1, 2]}
    assert out.index('"a"') < out.index('"b"')
    assert "happens" in err
    assert "work: done in" in err


def test_a_person_gets_findings_on_stdout_and_no_document(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.tell("found [1] " + "long " * 40)
    console.document({"a": 1})
    console.say("happens [2]")
    out, err = capsys.readouterr()
    assert out.splitlines() == [("found [1] " + "long " * 40)]
    assert err == "happens [2]\n"


def test_phases_of_one_name_add_up_and_a_failed_one_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.phase("work"):
        pass
    first = console.phases["work"]
    with pytest.raises(ZeroDivisionError), console.phase("work"):
        raise ZeroDivisionError
    assert console.phases["work"] > first >= 0
    assert capsys.readouterr().err.count("work: done") == 1


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Console().phase("work") as bar:
        bar.update(3, 10, "too early for a line")
    assert "early" not in capsys.readouterr().err
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.0)
    with Console().phase("work") as bar:
        bar.update(4, 10, "[/one] lane")
        bar.update(7, 10)
    first, second, done = capsys.readouterr().err.splitlines()
    assert first == "  work: 4/10 [/one] lane"  # nothing has been gained yet, so there is no ETA to tell
    assert second.startswith("  work: 7/10 ")
    assert second.endswith("ETA 0 s")
    assert done.startswith("work: done in ")


def test_what_is_left_of_another_total_is_not_foretold_from_the_pace_of_the_one_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY_S", -math.inf)
    now = iter([0.0, 600.0, 600.0, 610.0])
    with Console().phase("work") as bar:
        monkeypatch.setattr("jobs.console.time.monotonic", lambda: next(now))
        bar.update(0, 100, "read")
        bar.update(100, 100, "read")
        bar.update(0, 50, "remove")
        bar.update(10, 50, "remove")
        monkeypatch.undo()
    assert capsys.readouterr().err.splitlines()[3] == "  work: 10/50 remove ETA 40 s"


def test_a_terminal_shows_a_bar_with_an_eta(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Console().phase("work") as bar:
        bar.update(4, 10, "[/two] lanes")
    out, err = capsys.readouterr()
    assert out == ""
    shown = plain_text(err)
    assert all(part in shown for part in ("work", "4/10", "ETA", "[/two] lanes", "work: done in"))
