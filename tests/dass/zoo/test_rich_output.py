"""What a notebook and a console show, and the example in README."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from dass.cost import count_macs
from dass.networks.files import load_student
from dass.records import Recipe
from dass.search.ranking import COLUMNS
from dass.zoo import Distilled, RankedStudents, load
from tests.dass.zoo.site import RESOLUTION, SPACE, write_photos, write_predictor, write_teacher

ROOT = Path(__file__).resolve().parents[3]
CLASSES = ("<b>bus & co", "tram")


class Cells(HTMLParser):
    """The rows of the tables of a page as texts, and every text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> RankedStudents:
    folder = tmp_path_factory.mktemp("rich")
    predictor = load(write_predictor(folder / "predictor.safetensors", is_selected=False))
    teacher = write_teacher(folder / "teacher.safetensors", 2)
    images = write_photos(folder / "photos <i>", CLASSES)
    return predictor.rank(images, teacher, max_macs_ratio=0.9, max_params=120_000, candidates=60)


@pytest.fixture(scope="module")
def student(ranking: RankedStudents) -> Distilled:
    return ranking.distil(recipe=Recipe(epochs=4, batch_size=8, lr=0.01, eval_every=1))


def svg_of(html: str) -> ET.Element:
    return ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])  # noqa: S314 - our own text


def test_the_best_ten_stand_in_the_table_as_they_are(ranking: RankedStudents) -> None:
    head, *rows = Cells(ranking._repr_html_()).rows
    assert tuple(head) == COLUMNS
    assert len(rows) == 10
    for row, candidate in zip(rows, ranking, strict=False):
        assert row[0] == candidate.student.key
        shown = [float(text) for text in row[1:]]
        assert shown == pytest.approx(
            [candidate.score, candidate.macs / 1e6, candidate.params / 1e3], abs=0.51, rel=1e-3
        )


def test_a_console_shows_the_same_rows_in_columns(ranking: RankedStudents) -> None:
    lines = repr(ranking).splitlines()
    table = [re.split(r"  +", line) for line in lines[-11:]]
    assert table == Cells(ranking._repr_html_()).rows
    assert len({len(line) for line in lines[-11:]}) == 1
    assert str(ranking) == repr(ranking)


def test_the_words_tell_task_budget_and_teacher(ranking: RankedStudents) -> None:
    macs = count_macs(SPACE.largest, RESOLUTION, 2)
    words = " ".join(repr(ranking).splitlines()[:4])
    assert f"60 students ranked for {ranking.task.name}" in words
    assert "2 classes at 16 px, space smoke" in words
    assert f"at most {0.9 * macs / 1e6:.2f} M MACs, at most 120 k parameters" in words
    assert f"The teacher reaches {ranking.teacher.accuracy_pct:.1f} % on valid with {macs / 1e6:.2f} M MACs" in words
    assert f"predicted to reach {ranking.best.score:.1f} % with {ranking.best.macs / 1e6:.2f} M." in words
    assert "Meta-validation gave no rank correlation" in words  # the file says so


def test_the_picture_is_whole_without_a_page(ranking: RankedStudents, student: Distilled) -> None:
    for html, legend in (
        (ranking._repr_html_(), {"candidates", "predicted frontier", "budget", "best", "teacher"}),
        (student._repr_html_(), {"student", "teacher"}),
    ):
        texts = {element.text for element in svg_of(html).iter("{http://www.w3.org/2000/svg}text")}
        assert texts >= legend
        assert re.findall(r"var\(--\w+\)", html) == []  # every variable has a value of its own
        assert "<style" not in html
        assert "<script" not in html


def test_marks_lie_where_their_values_are(ranking: RankedStudents) -> None:
    """The best, the teacher and the budget's line on the logarithmic axis, and who of the two is higher."""
    svg = ranking._repr_html_().split('id="predictions-wide-legend_1"')[0]
    teacher_macs, best = count_macs(SPACE.largest, RESOLUTION, 2), ranking.best
    (budget,) = re.findall(r'd="M ([\d.]+) ([\d.]+) \nL \1 [\d.]+ \n"[^>]*stroke-dasharray', svg)[:1]
    marks = [
        (float(x), float(y))
        for x, y in re.findall(r'<use xlink:href="#predictions-wide-m[^"]*" x="([\d.]+)" y="([\d.]+)"', svg)
    ]
    (best_x, best_y), (teacher_x, teacher_y) = marks[-2:]
    scale = (teacher_x - best_x) / math.log(teacher_macs / best.macs)
    assert ranking.budget.max_macs is not None
    assert best_x + scale * math.log(ranking.budget.max_macs / best.macs) == pytest.approx(float(budget[0]), abs=0.1)
    assert (teacher_y < best_y) == (ranking.teacher.accuracy_pct > best.score)


def test_the_facts_of_a_student_are_those_of_its_result(student: Distilled, ranking: RankedStudents) -> None:
    facts = {row[0]: row[1] for row in Cells(student._repr_html_()).rows}
    result = student.result
    assert facts["student"] == student.run.student.key
    assert facts["accuracy on test"] == f"{result.test_accuracy_pct:.1f} %"
    assert facts["accuracy on valid"].startswith(f"{result.best_accuracy_pct:.1f} %, the teacher's ")
    assert facts["predicted"] == f"{ranking.best.score:.1f} %"
    macs = [count_macs(each, RESOLUTION, 2) / 1e6 for each in (student.run.student, SPACE.largest)]
    assert facts["MACs"] == f"{macs[0]:.2f} M, the teacher's {macs[1]:.2f} M"
    assert facts["classes"] == ", ".join(CLASSES)
    assert facts["trained"] == "4 epochs, seed 1"
    for name, value in facts.items():
        assert re.search(rf"^{re.escape(name)} +{re.escape(value)}$", repr(student), re.MULTILINE)


def test_names_are_texts_and_no_markup(ranking: RankedStudents, student: Distilled) -> None:
    for html in (ranking._repr_html_(), student._repr_html_()):
        assert not Cells(html).tags & {"b", "i"}
    assert "photos <i>" in "".join(Cells(ranking._repr_html_()).texts)


def test_the_example_in_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (ROOT / "README.md").read_text().split("\n### In Python\n")[1]
    code = section.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line and "import" not in line]) == 3
    monkeypatch.chdir(tmp_path)
    write_teacher(Path("teacher.safetensors"), 2, load().space)
    write_photos(Path("photos"))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own README
    ranking, student = names["ranking"], names["student"]
    assert isinstance(ranking, RankedStudents)
    assert isinstance(student, Distilled)
    saved = load_student(Path("student.safetensors").read_bytes())
    assert saved.student == ranking.best.student == student.run.student
    assert saved.classes == ("cat", "dog")
    assert student.run.recipe == Recipe()
    assert ranking.advice is not None
    assert f"{ranking.best.score:.1f} % after 6 epochs" in repr(student)  # what the shipped predictor learned from
