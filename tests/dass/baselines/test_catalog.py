import pytest

from dass.baselines import BASELINES
from dass.baselines.catalog import Catalog, Group, with_seed
from dass.errors import ConfigError
from dass.meta.guided import MetaConfig

CATALOG = Catalog(MetaConfig(episodes=3))


def test_the_main_methods_are_all_baselines_and_the_meta_learned_ones() -> None:
    main = CATALOG.main
    assert set(main) == {*BASELINES, "maml", "meta_sgd", "meta_d2a", "tans", "dass_unguided", "dass"}
    of_group = {group: {name for name in main if main[name].group is group} for group in Group}
    assert of_group[Group.TRIVIAL] == {"params", "macs", "depth", "random"}
    assert of_group[Group.SHORT_TRAINING] == {"short_kd"}
    assert of_group[Group.META_LEARNED] == {name for name in main if main[name].learned is not None}
    assert {name for name in main if main[name].needs_images} == {"meta_d2a", "tans"}


def test_methods_are_variants_of_the_settings_given() -> None:
    main = CATALOG.main
    assert main["dass"].learned == CATALOG.meta
    guided = main["dass_unguided"].learned
    assert isinstance(guided, MetaConfig)
    assert (guided.guided, guided.episodes) == (False, 3)
    alone = main["maml"].learned
    assert isinstance(alone, MetaConfig)
    assert (alone.inputs, alone.learn_rates) == ("A", False)
    assert with_seed(alone, 9).seed == 9


def test_ablations_are_chosen_by_name_alone() -> None:
    chosen = CATALOG.choose(["dass:first_order", "macs", "macs"])
    assert [method.name for method in chosen] == ["dass:first_order", "macs"]
    first = chosen[0].learned
    assert isinstance(first, MetaConfig)
    assert first.order == "first"
    assert not set(CATALOG.ablations) & {method.name for method in CATALOG.choose()}


def test_an_unknown_name_lists_all_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"one of params, macs, .*, dass, .*, got snipe; did you mean snip\?"):
        CATALOG.choose(["macs", "snipe"])
