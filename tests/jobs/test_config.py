from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dass.errors import ConfigError
from dass.records import Recipe
from jobs.config import Config, keys, parse_setting, with_settings, with_values
from jobs.recipes import RECIPES, get_recipe

BASE = Config()


def refusal(settings: list[str], config: Config = BASE) -> str:
    with pytest.raises(ConfigError) as caught:
        with_settings(config, settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "nested"),
    [
        ("space=paper", {"space": "paper"}),
        ("collect.seed=3", {"collect": {"seed": 3}}),
        ("student.lr = 1e-3", {"student": {"lr": 0.001}}),
        ("distil.controls=false", {"distil": {"controls": False}}),
        ("distil.seeds=[4, 5]", {"distil": {"seeds": [4, 5]}}),
        ('name="2024"', {"name": "2024"}),
        ("data.source=imagefolder:/a b/c=d", {"data": {"source": "imagefolder:/a b/c=d"}}),
        ("data.source=", {"data": {"source": ""}}),
        ("a.b.c=none", {"a": {"b": {"c": "none"}}}),
    ],
)
def test_a_setting_is_toml_or_bare_text(setting: str, nested: dict[str, Any]) -> None:
    assert parse_setting(setting) == nested


@pytest.mark.parametrize("setting", ["collect.seed", "", "=3", " =3", "a..b=3", ".a=3", "a.=3"])
def test_a_setting_without_key_or_value_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"--set must have the form a\.b=value, got .*; for example --set"):
        parse_setting(setting)


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_a_recipe_reads_back_what_is_shown(name: str) -> None:
    recipe = get_recipe(name)
    assert with_settings(BASE, [f"{key}={value}" for key, _, value, _ in keys(recipe)]) == recipe
    for key, _, value, _ in keys(recipe):
        assert with_settings(recipe, [f"{key}={value}"]) == recipe, key


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bears_its_own_name(name: str) -> None:
    assert get_recipe(name).name == name


def test_keys_cover_every_field_of_every_part() -> None:
    shown = [key for key, *_ in keys(BASE)]
    parts = [getattr(BASE, f.name) for f in fields(BASE)]
    leaves = sum(len(fields(part)) if hasattr(part, "__dataclass_fields__") else 1 for part in parts)
    assert len(set(shown)) == len(shown) == leaves
    assert {"name", "data.resolution", "teacher.lr", "student.lr", "final.lr", "lanes.num", "distil.seeds"} < set(shown)


def test_every_key_has_a_type_and_a_meaning() -> None:
    assert [key for key, kind, _, meaning in keys(BASE) if not (kind and meaning)] == []


def test_keys_name_types_as_a_person_writes_them() -> None:
    kinds = {key: kind for key, kind, *_ in keys(BASE)}
    assert kinds["student.loss"] == "kd | kd_paper | ce"
    assert kinds["student.crop_padding"] == "int | none"
    assert kinds["distil.seeds"] == "[int, ...]"
    assert kinds["collect.seed"] == "int"


def test_help_texts_are_no_part_of_a_recipes_identity() -> None:
    assert {f.name for f in fields(Recipe) if f.metadata["help"]} == {f.name for f in fields(Recipe)}
    assert replace(Recipe(), lr=0.05).id == Recipe().id != Recipe(lr=0.01).id


def test_settings_change_only_what_they_name() -> None:
    changed = with_settings(BASE, ["student.lr=0.25", "distil.seeds=[9]", "search.max_macs=1000"])
    assert changed == replace(
        BASE,
        student=replace(BASE.student, lr=0.25),
        distil=replace(BASE.distil, seeds=(9,)),
        search=replace(BASE.search, max_macs=1000),
    )
    assert with_settings(BASE, []) == BASE


def test_the_last_of_repeated_settings_wins() -> None:
    assert with_settings(BASE, ["collect.seed=1", "collect.sample_seed=5", "collect.seed=2"]).collect.seed == 2


def test_settings_that_need_each_other_may_come_in_any_order() -> None:
    assert BASE.lanes.lease_s < 500
    slow = ["lanes.checkpoint_s=400", "lanes.lease_s=500"]
    assert with_settings(BASE, slow) == with_settings(BASE, slow[::-1])
    quickstart = get_recipe("quickstart")
    assert quickstart.search.max_macs_ratio is not None
    freed = with_settings(quickstart, ["search.max_params=5", "search.max_macs_ratio=none"])
    assert (freed.search.max_params, freed.search.max_macs_ratio) == (5, None)


def test_one_macs_limit_takes_the_place_of_the_other_but_two_at_once_are_refused() -> None:
    quickstart = get_recipe("quickstart")
    absolute = with_settings(quickstart, ["search.max_macs=1000000"])
    assert (absolute.search.max_macs, absolute.search.max_macs_ratio) == (1_000_000, None)
    relative = with_settings(absolute, ["search.max_macs_ratio=0.5"])
    assert (relative.search.max_macs, relative.search.max_macs_ratio) == (None, 0.5)
    with pytest.raises(ConfigError, match="max_macs"):
        with_settings(quickstart, ["search.max_macs=1000000", "search.max_macs_ratio=0.5"])


def test_an_integer_stands_for_a_float_and_gives_the_same_recipe() -> None:
    changed = with_settings(BASE, ["student.temperature=6", "lanes.cpus=2"])
    assert type(changed.student.temperature) is type(changed.lanes.cpus) is float
    assert changed.student.id == BASE.student.id


def test_none_unsets_what_may_be_unset_and_nothing_else() -> None:
    padded = with_settings(BASE, ["student.crop_padding=3"])
    assert with_settings(padded, ["student.crop_padding=none"]).student.crop_padding is None
    assert "collect.seed must be of type int, got 'none'" in refusal(["collect.seed=none"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("collect.seed=x", "collect.seed must be of type int, got 'x'; `dass keys` shows every key with its type"),
        ("collect.seed=1.5", "collect.seed must be of type int, got 1.5"),
        ("collect.seed=true", "collect.seed must be of type int, got True"),
        ("student.crop_padding=true", "student.crop_padding must be of type int, got True"),
        ("student.crop_padding=1.5", "student.crop_padding must be of type int, got 1.5"),
        ("student.lr=true", "student.lr must be of type float, got True"),
        ("student.lr=nan", "student.lr must be a finite number, got nan"),
        ("lanes.cpus=inf", "lanes.cpus must be a finite number, got inf"),
        ("search.max_macs_ratio=half", "search.max_macs_ratio must be of type float, got 'half'"),
        ("distil.controls=1", "distil.controls must be of type bool, got 1"),
        ("distil.seeds=1", "distil.seeds must be of type [int, ...], got 1"),
        ("distil.seeds=[1, 2.5]", "distil.seeds must be of type int, got 2.5"),
        ("distil.seeds=[1, true]", "distil.seeds must be of type int, got True"),
        ("collect.seed=9223372036854775808", "collect.seed must fit into 64 bits, got 9223372036854775808"),
        (f"student.lr={'9' * 400}", "student.lr must fit into 64 bits"),
        ("space=3", "space must be of type str, got 3"),
        ("student.loss=kdd", "student.loss must be one of kd, kd_paper, ce, got 'kdd'; did you mean kd?"),
        ("student.loss=7", "student.loss must be one of kd, kd_paper, ce, got 7; choose one of them"),
        ("collect=1", "collect is a group of keys, got 1; set one of them, such as collect.students_per_task"),
        ("collect.seed.x=1", "collect.seed must be of type int, got {'x': 1}"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_key_and_where_it_was_written(setting: str, message: str) -> None:
    refused = refusal([setting])
    assert refused.startswith("--set: ")
    assert message in refused


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("collect.seeed=1", "unknown key 'collect.seeed'; did you mean collect.seed?"),
        ("colect.seed=1", "unknown key 'colect'; did you mean collect?"),
        ("epochs=1", "unknown key 'epochs'; did you mean teacher.epochs or student.epochs or final.epochs?"),
        ("distil.zzz=1", "unknown key 'distil.zzz'; legal keys are distil.seeds, distil.controls"),
    ],
)
def test_an_unknown_key_names_its_neighbours(setting: str, hint: str) -> None:
    assert refusal([setting]) == f"--set: {hint}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("student.epochs=0", "student.epochs must be >= 1, got 0"),
        ("teacher.lr=-1", "teacher.lr must be > 0, got -1.0"),
        ("teacher.loss=kd", "teacher.loss must be 'ce'"),
        ("final.crop_padding=64", "final.crop_padding must be less than data.resolution, got 64 and 32"),
        ("data.resolution=20", "data.resolution must be a positive multiple of 8, got 20"),
        ("data.target_classes=1", "data.target_classes must be 0 or >= 2, got 1"),
        ("data.test_fraction=0.9", "must be positive and sum to less than 1, got 0.2 and 0.9"),
        ("collect.students_per_task=1", "collect.students_per_task must be >= 2, got 1"),
        ("distil.seeds=[]", "distil.seeds must be distinct and at least one, got ()"),
        ("distil.seeds=[1, 1]", "distil.seeds must be distinct and at least one, got (1, 1)"),
        ("collect.target_repeats=99", "collect.target_repeats must be between 0 and collect.target_students="),
        ("lanes.num=0", "lanes.num must be >= 1, got 0"),
        ("lanes.gpus=2", "lanes.gpus must be between 0 and 1, as a lane uses one device, got 2; set lanes.gpus=1"),
        (
            "lanes.gpus=-0.5",
            "lanes.gpus must be between 0 and 1, as a lane uses one device, got -0.5; set lanes.gpus=1",
        ),
        ("meta.episodes=0", "meta.episodes must be >= 1, got 0"),
        ("search.max_macs_ratio=2", "search.max_macs_ratio must be in (0, 1], got 2.0"),
        ("space=paper6", "space must be one of paper5, paper, released, paper5_w8, smoke, got 'paper6'"),
    ],
)
def test_a_value_out_of_range_is_named_by_its_own_key(setting: str, message: str) -> None:
    assert message in refusal([setting])


def test_a_task_cannot_have_more_students_than_the_space() -> None:
    assert "space smoke has 256, got a collection of 257 per task" in refusal(
        ["space=smoke", "collect.students_per_task=257"]
    )


def test_the_origin_of_nested_values_stands_first() -> None:
    with pytest.raises(ConfigError, match=r"^--data: data\.source must be of type str, got 3"):
        with_values(BASE, {"data": {"source": 3}}, "--data")


@given(
    st.floats(1e-6, 1e3),
    st.integers(-(2**62), 2**62),
    st.booleans(),
    st.lists(st.integers(0, 2**63 - 1), min_size=1, unique=True),
)
def test_any_legal_value_survives_being_shown_and_read(lr: float, seed: int, controls: bool, seeds: list[int]) -> None:
    config = with_values(
        BASE,
        {"student": {"lr": lr}, "collect": {"seed": seed}, "distil": {"controls": controls, "seeds": seeds}},
        "here",
    )
    assert (config.student.lr, config.distil.seeds) == (lr, tuple(seeds))
    assert with_settings(BASE, [f"{key}={value}" for key, _, value, _ in keys(config)]) == config
