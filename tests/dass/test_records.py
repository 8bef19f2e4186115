import dataclasses
import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dass.errors import ConfigError, SpaceError
from dass.records import CurvePoint, Init, Loss, Recipe, Run, Student, Task, canonical_json, content_id

STUDENT = Student(((16, 32), (64,)))
RUN = Run("task", "teacher", STUDENT, Recipe(epochs=7), 3)

FLOATS = [f.name for f in dataclasses.fields(Recipe) if f.type is float]
OTHER_VALUES: dict[str, Any] = {
    "loss": "ce",
    "temperature": 4.0,
    "alpha": 0.25,
    "scale_by_t2": False,
    "label_smoothing": 0.1,
    "epochs": 7,
    "batch_size": 32,
    "lr": 0.01,
    "momentum": 0.5,
    "weight_decay": 0.0,
    "init": "scratch",
    "flip": 0.0,
    "vertical_flip": 0.5,
    "crop_padding": 2,
    "eval_every": 1,
    "precision": "bfloat16",
}

recipes = st.builds(
    Recipe,
    loss=st.sampled_from(get_args(Loss)),
    temperature=st.integers(1, 3),
    alpha=st.sampled_from([0, 0.5, 1.0]),
    scale_by_t2=st.booleans(),
    epochs=st.integers(1, 3),
    lr=st.sampled_from([0.05, 0.1, 1]),
    init=st.sampled_from(get_args(Init)),
    crop_padding=st.none() | st.integers(0, 2),
)


@dataclass(frozen=True)
class Inner:
    size: int
    label: str = "plain"


@dataclass(frozen=True)
class Before:
    inner: Inner
    rate: float = 0.5


@dataclass(frozen=True)
class After:
    """`Before` as a later version might have it."""

    inner: Inner
    rate: float = 0.5
    extra: int | None = None


class TestCanonicalJson:
    def test_keys_are_sorted_and_nothing_is_spaced(self) -> None:
        assert canonical_json({"b": (1, [2.5, None]), "a": {"z": True, "y": "é"}}) == (
            '{"a":{"y":"\\u00e9","z":true},"b":[1,[2.5,null]]}'
        )

    def test_fields_at_their_default_are_left_out_at_every_depth(self) -> None:
        assert canonical_json(Before(Inner(3))) == '{"inner":{"size":3}}'
        assert (
            canonical_json([Before(Inner(3, "fine"), rate=1.0)]) == '[{"inner":{"label":"fine","size":3},"rate":1.0}]'
        )

    def test_a_field_without_a_default_always_stands(self) -> None:
        assert canonical_json(Inner(0)) == '{"size":0}'

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_no_number_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"rate": value})

    def test_a_new_field_with_a_default_changes_no_id_until_it_is_used(self) -> None:
        assert content_id(After(Inner(3), 0.25)) == content_id(Before(Inner(3), 0.25))
        assert content_id(After(Inner(3), 0.25, extra=0)) != content_id(Before(Inner(3), 0.25))

    def test_an_id_is_the_beginning_of_the_texts_sha256(self) -> None:
        assert content_id({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:32]
        assert Recipe().id == hashlib.sha256(b"{}").hexdigest()[:32]
        assert Recipe(lr=0.1, epochs=3).id == hashlib.sha256(b'{"epochs":3,"lr":0.1}').hexdigest()[:32]


class TestRecipe:
    @given(recipes, recipes)
    def test_recipes_have_one_id_exactly_when_they_are_equal(self, one: Recipe, other: Recipe) -> None:
        assert (one.id == other.id) == (one == other)

    def test_every_field_is_a_part_of_the_id(self) -> None:
        assert OTHER_VALUES.keys() == {f.name for f in dataclasses.fields(Recipe)}
        ids = [replace(Recipe(), **{name: value}).id for name, value in OTHER_VALUES.items()]
        assert len({Recipe().id, *ids}) == len(ids) + 1

    def test_every_field_is_a_part_of_the_runs_id(self) -> None:
        runs = [replace(RUN, recipe=replace(Recipe(), **{name: value})) for name, value in OTHER_VALUES.items()]
        assert len({run.id for run in runs}) == len(runs)

    @pytest.mark.parametrize("name", FLOATS)
    def test_an_int_and_a_float_spell_one_recipe(self, name: str) -> None:
        whole: int = 0 if name == "momentum" else 1
        spelt = [Recipe(**{name: value}) for value in (whole, float(whole))]  # type: ignore[arg-type]
        assert spelt[0] == spelt[1]
        assert spelt[0].id == spelt[1].id
        assert {type(getattr(recipe, name)) for recipe in spelt} == {float}

    def test_the_defaults_are_the_released_recipe(self) -> None:
        recipe = Recipe()
        assert (recipe.loss, recipe.temperature, recipe.alpha, recipe.scale_by_t2) == ("kd", 6.0, 0.5, True)
        assert (recipe.epochs, recipe.batch_size, recipe.eval_every) == (50, 64, 5)
        assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.05, 0.9, 3e-5)
        assert (recipe.init, recipe.flip, recipe.crop_padding) == ("copy_paste_first", 0.5, None)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("epochs", 0),
            ("batch_size", 0),
            ("eval_every", 0),
            ("lr", 0.0),
            ("lr", -0.1),
            ("momentum", 1.0),
            ("momentum", -0.1),
            ("weight_decay", -1e-9),
            ("temperature", 0.0),
            ("alpha", 1.1),
            ("label_smoothing", -0.1),
            ("flip", 2),
            ("vertical_flip", -1),
            ("crop_padding", -1),
        ],
    )
    def test_values_out_of_range_are_refused_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=rf"recipe\.{name} must be .*, got {value}"):
            replace(Recipe(), **{name: value})

    @pytest.mark.parametrize("name", FLOATS)
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_values_that_are_not_finite_are_refused_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=rf"recipe\.{name} must be a finite number, got {value}"):
            replace(Recipe(), **{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("loss", "kl"),
            ("init", "copy_paste"),
            ("crop_padding", 4.0),
            ("scale_by_t2", 1),
            ("epochs", True),
            ("lr", True),
        ],
    )
    def test_values_of_another_kind_are_refused_by_name(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=rf"recipe\.{name} must be .*, got {value!r}"):
            replace(Recipe(), **{name: value})


class TestRun:
    def test_everything_that_decides_a_result_is_a_part_of_the_id(self) -> None:
        others = [
            replace(RUN, task="other"),
            replace(RUN, teacher="other"),
            replace(RUN, teacher=None),
            replace(RUN, student=Student(((16, 32), (65,)))),
            replace(RUN, student=replace(STUDENT, family="other")),
            replace(RUN, recipe=Recipe()),
            replace(RUN, seed=4),
        ]
        assert len({RUN.id, *(run.id for run in others)}) == len(others) + 1

    def test_equal_runs_have_equal_ids_that_look_like_one(self) -> None:
        again = Run("task", "teacher", Student(((16, 32), (64,))), Recipe(epochs=7), 3)
        assert (again, again.id) == (RUN, RUN.id)
        assert len(RUN.id) == 32
        assert int(RUN.id, 16) >= 0

    def test_an_id_once_asked_for_does_not_stick_to_changed_copies(self) -> None:
        assert replace(RUN, seed=RUN.seed + 1).id != RUN.id
        assert replace(RUN.recipe, lr=1.0).id != RUN.recipe.id


class TestStudent:
    def test_entries_beyond_the_depth_are_cut_off(self) -> None:
        long = Student.from_rows((2, 1), ((16, 32, 99), (64, 1, 1)))
        assert long == STUDENT
        assert hash(long) == hash(STUDENT)
        assert replace(RUN, student=long).id == RUN.id

    @given(
        st.lists(st.lists(st.integers(1, 512), min_size=1, max_size=5).map(tuple), min_size=1, max_size=4).map(tuple)
    )
    def test_depths_and_rows_give_the_student_back(self, widths: tuple[tuple[int, ...], ...]) -> None:
        student = Student(widths)
        padded = tuple((*row, 7, 7) for row in widths)
        assert student.depths == tuple(map(len, widths))
        assert Student.from_rows(student.depths, padded) == student

    @pytest.mark.parametrize(
        ("depths", "rows"), [((2, 2), ((16, 32), (64,))), ((2,), ((16, 32), (64,))), ((2, 1, 1), ((16, 32), (64,)))]
    )
    def test_a_row_shorter_than_its_depth_is_refused(
        self, depths: tuple[int, ...], rows: tuple[tuple[int, ...], ...]
    ) -> None:
        with pytest.raises(SpaceError, match="every stage needs at least `depth` widths, got depths"):
            Student.from_rows(depths, rows)

    def test_the_key_names_the_widths_stage_by_stage(self) -> None:
        assert Student(((16, 32), (64,), (64,), (128, 256))).key == "16.32-64-64-128.256"

    def test_students_are_ordered_by_their_widths(self) -> None:
        wide, narrow, deep = Student(((16,), (64,))), Student(((8,), (64,))), Student(((8, 8), (64,)))
        assert sorted([wide, deep, narrow]) == [narrow, deep, wide]


def test_a_task_shows_its_classes_and_not_its_indices() -> None:
    task = Task("id", "flowers", "pack", 32, ("daisy", "rose"), (4, 7), (1234, 5678), (9012,), ())
    assert task.num_classes == 2
    assert "rose" in repr(task)
    assert "1234" not in repr(task)


def test_values_cannot_be_changed() -> None:
    for value, name in (
        (RUN, "seed"),
        (RUN.recipe, "lr"),
        (STUDENT, "widths"),
        (CurvePoint(1, 1.0, 1.0, 50.0), "epoch"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)
