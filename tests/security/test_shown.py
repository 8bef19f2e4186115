"""What others named steers neither a terminal nor a browser (the page: tests/dass/report/test_page.py)."""

from pathlib import Path

import pytest

from jobs.console import Console, shown
from tests.jobs.command import call

EVIL = "\x1b]0;title\x07\x1b[31mred\x9b2J\x08\r"


def test_the_console_shows_controls_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say(EVIL)
    console.tell(EVIL)
    console.table(EVIL, ("name",), [(EVIL,)])
    printed = "".join(capsys.readouterr())
    assert not {"\x1b", "\x07", "\x9b", "\x08", "\r"} & set(printed)
    assert printed.count("\\x1b]0;title") == 4


def test_an_error_shows_controls_as_text(tmp_path: Path) -> None:
    for command in (
        ("export", "--output", EVIL),
        ("search", "--set", EVIL),
        (EVIL,),
        ("status", "--store", f"x{EVIL}://"),
    ):
        answer = call(*command)
        assert answer.code == 2
        assert not {"\x1b", "\x07", "\x9b", "\x08", "\r"} & set(answer.out + answer.err)


def test_other_text_stays() -> None:
    assert shown("t\u00e4sk \u2764\n\tnext") == "t\u00e4sk \u2764\n\tnext"
