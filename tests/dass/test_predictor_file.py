"""The file of a predictor: what comes back, what is refused, and what older versions wrote."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dass.errors import PredictorMismatchError, SchemaTooNewError, StoreError
from dass.meta.method import epochs_of
from dass.predictor import Predictor, load_predictor, save_predictor
from dass.records import Recipe
from dass.tensors import pack_tensors, unpack_tensors
from tests.dass.small_predictor import SMALL, meta_predictor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def test_weights_learned_rates_and_spec_come_back_bit_by_bit() -> None:
    predictor = meta_predictor(unit="task_free", remap_mode="copy_paste_last")
    for index, rate in enumerate(predictor.rates.values()):
        rate.add_(index / 7)
    loaded = load_predictor(predictor.save())
    assert loaded.spec == predictor.spec
    for name, value in predictor.model.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), value)
        assert torch.equal(loaded.rates[name], predictor.rates[name])


def test_legacy_alpha_puts_the_initial_rate_in_the_place_of_the_learned() -> None:
    predictor = meta_predictor(rate=0.7, rate_init=0.025)
    loaded = load_predictor(predictor.save(), legacy_alpha=True)
    assert all(bool((rate == 0.025).all()) for rate in loaded.rates.values())


def test_that_meta_validation_did_not_choose_it_is_remembered() -> None:
    model, rates = Predictor(SMALL, seed=0), meta_predictor().rates
    flags = [load_predictor(save_predictor(model, rates, is_selected=flag)).is_selected for flag in (True, False)]
    assert flags == [True, False]


@pytest.mark.parametrize(
    ("name", "made_for", "wanted"),
    [
        ("space", "smoke", "paper5"),
        ("resolution", 64, 32),
        ("noise_sha", "n0", "n1"),
        ("unit", "percent", "task_free"),
        ("remap_mode", "copy_paste_first", "copy_paste_last"),
    ],
)
def test_a_predictor_made_for_something_else_is_refused_with_both_values(
    name: str, made_for: object, wanted: Any
) -> None:
    data = meta_predictor().save()
    with pytest.raises(PredictorMismatchError, match=f"its {name} is {made_for!r}, got {wanted!r}"):
        load_predictor(data, expect=dataclasses.replace(SMALL, **{name: wanted}))


def test_what_fits_the_expectation_is_loaded() -> None:
    data = meta_predictor().save()
    assert load_predictor(data, expect=SMALL).spec == SMALL
    other_training = dataclasses.replace(SMALL, rate_init=0.5, guided=False)
    assert load_predictor(data, expect=other_training).spec == SMALL


def test_damaged_and_foreign_files_are_store_errors() -> None:
    data = meta_predictor().save()
    tensors, header = unpack_tensors(data)
    tensors.pop("rate.head.bias")
    for broken in (data[:-5], pack_tensors(tensors, header), pack_tensors({"phi": torch.zeros(1)})):
        with pytest.raises(StoreError):
            load_predictor(broken)


def test_a_number_that_no_float_holds_is_damage() -> None:
    tensors, header = unpack_tensors(meta_predictor().save())
    for name, value in (("rate_init", 10**400), ("recipe", f'{{"lr": {10**400}}}')):
        damaged = {**header["predictor"], "spec": {**header["predictor"]["spec"], name: value}}
        with pytest.raises(StoreError, match="does not fit together"):
            load_predictor(pack_tensors(tensors, {"predictor": damaged}))


def test_a_file_of_version_1_is_still_read() -> None:
    predictor = meta_predictor()
    tensors, header = unpack_tensors(predictor.save())
    file = header["predictor"]
    header["predictor"] = {
        "version": 1,
        "spec": {name: value for name, value in file["spec"].items() if name not in ("support_students", "recipe")},
        "is_selected": True,
    }
    loaded = load_predictor(pack_tensors(tensors, header))
    assert loaded.spec == predictor.spec
    assert loaded.num_support == 0


def test_a_file_of_version_2_is_still_read() -> None:
    loaded = load_predictor((GOLDEN / "predictor_v2.safetensors").read_bytes())
    assert (loaded.spec.space, loaded.spec.resolution, loaded.spec.inputs) == ("paper5_w8", 32, "AR")
    assert epochs_of(loaded.spec) is None


def test_it_says_after_how_many_epochs_students_have_what_it_foretells() -> None:
    predictor = meta_predictor(recipe=Recipe(epochs=7).canonical)
    assert epochs_of(load_predictor(predictor.save()).spec) == 7
    assert epochs_of(load_predictor(meta_predictor().save()).spec) is None


@pytest.mark.parametrize("recipe", ["{", '{"epochs": "7"}', '{"epoch": 7}', "7"])
def test_a_recipe_that_is_none_is_refused(recipe: str) -> None:
    tensors, header = unpack_tensors(meta_predictor().save())
    header["predictor"]["spec"]["recipe"] = recipe
    with pytest.raises(StoreError, match="canonical JSON"):
        load_predictor(pack_tensors(tensors, header))


def test_a_file_of_a_newer_version_says_so() -> None:
    tensors, header = unpack_tensors(meta_predictor().save())
    header["predictor"]["version"] = 99
    with pytest.raises(SchemaTooNewError, match="99"):
        load_predictor(pack_tensors(tensors, header))
