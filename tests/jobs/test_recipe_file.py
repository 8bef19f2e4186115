from dataclasses import replace
from pathlib import Path

import pytest

from dass.errors import ConfigError
from jobs.__main__ import configured
from jobs.recipe_file import from_toml
from jobs.recipes import get_recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_toml_file_starts_from_the_recipe_that_it_names(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.toml",
        'recipe = "smoke"\nspace = "paper5_w8"\n[student]\nlr = 1\ncrop_padding = "none"\n[distil]\nseeds = [7, 8]\n',
    )
    smoke = get_recipe("smoke")
    expected = replace(
        smoke,
        space="paper5_w8",
        student=replace(smoke.student, lr=1.0, crop_padding=None),
        distil=replace(smoke.distil, seeds=(7, 8)),
    )
    assert from_toml(path, get_recipe) == expected
    assert from_toml(write(tmp_path / "empty.toml", ""), get_recipe) == get_recipe("quickstart")


@pytest.mark.parametrize(
    ("text", "settings", "source", "name"),
    [
        ("", [], None, "quickstart"),
        ("", [], "digits", "quickstart"),
        ("", [], "imagefolder:photos", "pretrained"),
        ("", ["data.source=imagefolder:photos"], None, "pretrained"),
        ("[data]\nsource = 'imagefolder:photos'", [], None, "pretrained"),
        ("[data]\nsource = 'imagefolder:photos'", [], "digits", "quickstart"),
        ("recipe = 'smoke'\n[data]\nsource = 'imagefolder:photos'", [], "imagefolder:photos", "smoke"),
    ],
)
def test_a_toml_file_without_a_recipe_starts_from_the_one_for_its_images(
    text: str, settings: list[str], source: str | None, name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "mine.toml", f"space = 'paper'\n{text}" if "recipe" not in text else text)
    found = configured(str(path), settings, source)
    assert (found.name, found.data.valid_fraction) == (name, get_recipe(name).data.valid_fraction)


def test_a_wrong_key_of_a_file_with_its_own_images_is_found_in_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", "[student]\nepochs = 0\n[data]\nsource = 'imagefolder:photos'\n")
    with pytest.raises(ConfigError, match=r"mine\.toml, line 2: student\.epochs must be >= 1, got 0"):
        from_toml(path, get_recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[student\nlr = 1", r"mine\.toml must be TOML, got: .*\(at line 1, column 9\); correct that line"),
        ("[student]\nlr = true", r"mine\.toml, line 2: student\.lr must be of type float, got True"),
        ("[student]\nlrr = 0.1", r"mine\.toml, line 2: unknown key 'student\.lrr'; did you mean student\.lr\?"),
        (
            "student = 3",
            r"mine\.toml, line 1: student is a group of keys, got 3; set one of them, such as student\.loss",
        ),
        ("[student]\nepochs = 0", r"mine\.toml, line 2: student\.epochs must be >= 1, got 0"),
        (
            "recipe = 3",
            r"mine\.toml, line 1: recipe must be the name of a recipe, got 3; for example recipe = \"smoke\"",
        ),
        (
            "# all\n\n[student]\nlr = 1\n\n# more\nepochs = 'x' # why\n",
            r", line 7: student\.epochs must be of type int, got 'x'",
        ),
        (
            "[distil]\nseeds = [\n  1,\n  'x',\n]\n[student]\nlr = 1",
            r", line 2: distil\.seeds must be of type int, got 'x'",
        ),
        ("student.lr = 1\nsearch.max_macs = 5\nsearch.max_macs_ratio = 0.5\nspace = 'paper'", r", line 3: only one of"),
        ("[student]\nlr = 1\n[meta]\nlrr = 1\n", r", line 4: unknown key 'meta\.lrr'; did you mean meta\.lr\?"),
        (
            'recipe = "smoky"',
            r", line 1: --recipe must be one of quickstart, pretrained, digits, smoke, .*, got 'smoky'; did you mean smoke\?",
        ),
    ],
)
def test_a_wrong_toml_file_names_itself_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_toml(write(tmp_path / "mine.toml", text), get_recipe)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"readable TOML file, got .*absent\.toml \(No such file or directory\); correct"
    ):
        from_toml(tmp_path / "absent.toml", get_recipe)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml must be TOML"):
        from_toml(tmp_path / "binary.toml", get_recipe)
