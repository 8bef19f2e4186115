"""One seeded schedule: users submit one plan to a cluster in virtual time until all is done, faults strike, rules watch.

What is real and what is mirrored stands in simulated_cluster.py, what may strike in faults.py, what must hold in rules.py.
"""

from collections import Counter
from dataclasses import dataclass

from cluster.documents import put_task
from tests.chaos.faults import Faults
from tests.chaos.kernel import World
from tests.chaos.schedule import TASK, Schedule
from tests.chaos.simulated_cluster import Cluster, User

CALM_S = 4000.0  # within which everything must be done once the faults have ended
MOST_FAULTS = 12
TRACED = 80  # events that are kept


@dataclass(frozen=True)
class Outcome:
    """What happened in one schedule. Times in virtual seconds, numbers of steps over all runs.

    violation: the rule that was broken, with the last events in `trace`; None when all held.
    """

    seed: int
    violation: str | None
    trace: tuple[str, ...]
    faults: Counter[str]
    runs: int
    records: int
    submissions: int
    leases: int
    steps: int
    steps_repeated: int
    hits: int
    recovery_s: float
    virtual_s: float
    events: int


def simulate(seed: int, *, traced: bool = False) -> Outcome:
    """Run the schedule of a seed; traced: keep all events."""
    world = World(seed, traced=None if traced else TRACED)
    faults = Faults(world)
    cluster = Cluster(world, Schedule.draw(world.random), faults.trap)
    faults.aim(cluster)
    with cluster.patched():
        _play(cluster, faults)
    world.close()
    rules = cluster.rules
    return Outcome(
        seed=seed,
        violation=world.violation,
        trace=tuple(world.told()) if world.violation or traced else (),
        faults=world.counts,
        runs=len(cluster.schedule.plan.runs),
        records=len(rules.winners),
        submissions=len(cluster.submissions),
        leases=len(rules.tokens),
        steps=rules.num_steps,
        steps_repeated=rules.num_repeated,
        hits=rules.num_hits,
        recovery_s=rules.recovery_s,
        virtual_s=world.now,
        events=world.num_events,
    )


def _play(cluster: Cluster, faults: Faults) -> None:
    """Let everything happen, and check that everything is done in the end."""
    world, schedule = cluster.world, cluster.schedule
    setup = cluster.start("setup", lambda: put_task(cluster.store, TASK))
    world.run(lambda: setup.is_dead, until_s=CALM_S)
    users = [User(cluster, f"user{number}") for number in range(2 if schedule.is_double else 1)]
    for _ in range(world.random.randint(1, MOST_FAULTS)):
        world.at(world.random.uniform(0, schedule.faults_end_s), faults.strike)
    world.at(schedule.faults_end_s, faults.end)
    is_over = world.run(
        lambda: world.now > schedule.faults_end_s and all(user.is_content for user in users),
        until_s=schedule.faults_end_s + CALM_S,
    )
    if not is_over and world.violation is None:
        world.break_rule(f"not all is done {CALM_S:g} s after the last fault")
    missing = schedule.attainable - cluster.rules.winners.keys()
    if missing and world.violation is None:
        world.break_rule(f"the users are told that all is done, and {sorted(missing)} have no record")
