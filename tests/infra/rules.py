"""All rules over an overlay; each is a function of its resources and its name, and yields what breaks it."""

from collections.abc import Callable, Iterator

from tests.infra import fleet_rules, pod_rules, site_rules
from tests.infra.kustomize import Resource

RULES: tuple[Callable[[list[Resource], str], Iterator[str]], ...] = (
    pod_rules.waits_fit_together,
    pod_rules.spot_is_for_workers_that_say_so,
    pod_rules.pods_are_restricted,
    pod_rules.access_goes_without_keys,
    pod_rules.volumes_are_there,
    pod_rules.probes_ask_what_answers,
    pod_rules.names_are_known_to_ray,
    pod_rules.one_image_serves_all,
    fleet_rules.on_demand_is_reached,
    fleet_rules.drivers_have_a_place,
    site_rules.heads_are_protected,
    site_rules.ports_are_open_and_no_others,
    site_rules.selectors_find_pods,
    site_rules.references_are_there,
    site_rules.entrypoints_are_commands,
    site_rules.kuberay_takes_it,
)


def broken(resources: list[Resource], overlay: str) -> list[str]:
    """What the resources of an overlay break."""
    return [message for rule in RULES for message in rule(resources, overlay)]
