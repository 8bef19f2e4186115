"""Ray, time and threading for code in the simulator: actors that are called, killed and started again.

A call takes time both ways. When its actor dies before the answer is there it is made again at the actor's next life,
as Ray does with max_task_retries=-1, and now and then so without a death: a lost answer. Calls of one caller keep no order.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray.exceptions import GetTimeoutError, RayActorError

from tests.chaos.kernel import Process, Task, World

LATENCY_S = 0.02
REPEATED = 0.02  # share of the calls whose answer is lost
RESTART_S = (0.5, 6.0)
_TINY_S = 1e-6  # what the rounding of clocks may leave


class Observer(Protocol):
    """What is told of the calls of one life of an actor."""

    def begin(self, instance: Any) -> None: ...

    def before(self, caller: str, method: str, args: tuple[Any, ...]) -> None: ...

    def after(self, caller: str, method: str, args: tuple[Any, ...], reply: Any) -> None: ...


@dataclass(eq=False)
class Reference:
    """The answer to a call, once it is there."""

    caller: Task
    method: str
    args: tuple[Any, ...]
    is_done: bool = False
    value: Any = None
    error: Exception | None = None
    ticket: int = field(default=-1)

    def settle(self, world: World, value: Any, error: Exception | None = None) -> None:
        if not self.is_done:
            self.is_done, self.value, self.error = True, value, error
            world.at(0, self.caller.resume, self.ticket, None)


class Actor:
    """A serial actor whose process Ray starts again, and its handle: `actor.method.remote(...)`.

    make: gives the instance; called in the actor's process.
    observe: gives who is told of the next life's calls, from its process and whether it is not the first life.
    """

    def __init__(
        self, world: World, name: str, make: Callable[[], object], observe: Callable[[Process, bool], Observer]
    ) -> None:
        self._world = world
        self._name = name
        self._make = make
        self._observe = observe
        self._calls: list[Reference] = []  # without an answer
        self._is_gone = False
        self._life = 0
        self._start()

    @property
    def process(self) -> Process:
        """The process of its present life."""
        return self._process

    @property
    def is_gone(self) -> bool:
        """Whether it has ended for good."""
        return self._is_gone

    def __getattr__(self, method: str) -> "Method":
        if method.startswith("_"):
            raise AttributeError(method)
        return Method(self, method)

    def destroy(self) -> None:
        """End it for good, as ray.kill does; only the event loop may."""
        self._is_gone = True
        self._process.kill()
        for call in self._calls:
            call.settle(self._world, None, RayActorError())

    def send(self, call: Reference) -> None:
        """Let a call arrive some time."""
        if self._is_gone:
            call.settle(self._world, None, RayActorError())
            return
        self._calls.append(call)
        self._world.at(self._delay(), self._deliver, call, self._life)

    def _delay(self) -> float:
        return self._world.random.expovariate(1 / LATENCY_S)

    def _start(self) -> None:
        if self._is_gone:
            return
        self._life += 1
        self._mailbox: deque[Reference] = deque()
        self._is_waiting = False
        self._process = Process(self._world, f"{self._name}#{self._life}", self._serve, self._exited)
        self._observer = self._observe(self._process, self._life > 1)
        for call in self._calls:
            self._world.at(self._delay(), self._deliver, call, self._life)

    def _exited(self, error: BaseException | None) -> None:
        self._world.note(self._process.name, "exited", error)
        if isinstance(error, Exception):  # Ray starts no actor again whose making raised
            self.destroy()
        elif not self._is_gone:
            self._world.at(self._world.random.uniform(*RESTART_S), self._start)

    def _deliver(self, call: Reference, life: int) -> None:
        if life == self._life and not call.is_done and not self._process.is_dead:
            self._mailbox.append(call)
            if self._is_waiting:
                self._is_waiting = False
                self._server.resume(self._server.ticket, None)

    def _serve(self) -> None:
        self._server = self._world.task
        instance = self._make()
        self._observer.begin(instance)
        while True:
            while not self._mailbox:
                self._is_waiting = True
                self._world.park()
            call = self._mailbox.popleft()
            caller = call.caller.process.name
            self._observer.before(caller, call.method, call.args)
            reply = getattr(instance, call.method)(*call.args)
            self._world.note(caller, call.method, call.args, reply)
            self._observer.after(caller, call.method, call.args, reply)
            if self._world.random.random() < REPEATED:
                self._world.counts["queue: answer lost, call repeated"] += 1
                self._world.at(self._delay(), self._deliver, call, self._life)
            else:
                self._world.at(self._delay(), self._answer, call, self._life, reply)

    def _answer(self, call: Reference, life: int, reply: object) -> None:
        if life != self._life and self._world.random.random() < 0.5:
            return  # lost with the process; the call is made again
        if call in self._calls:
            self._calls.remove(call)
        call.settle(self._world, reply)


@dataclass(frozen=True)
class Method:
    """A method of an actor's handle."""

    actor: Actor
    name: str

    def remote(self, *args: Any) -> Reference:
        """Call it; the answer is got with `SimulatedRay.get`."""
        world = self.actor._world
        call = Reference(world.task, self.name, args)
        self.actor.send(call)
        return call


@dataclass(frozen=True)
class SimulatedRay:
    """What lanes use of the module ray."""

    world: World

    def get(self, call: Reference, timeout: float = math.inf) -> Any:
        """Wait for the answer, so long at most."""
        until = self.world.process.monotonic() + timeout
        while not call.is_done:
            call.ticket = self.world.task.ticket
            if timeout == math.inf:
                self.world.park()
            elif (left := until - self.world.process.monotonic()) > _TINY_S:
                self.world.process.sleep(left)
            else:
                raise GetTimeoutError
        if call.error is not None:
            raise call.error
        return call.value


@dataclass(frozen=True)
class SimulatedTime:
    """What the cluster layer uses of the module time: the clock of the process that runs."""

    world: World

    def monotonic(self) -> float:
        return self.world.process.monotonic()

    def perf_counter(self) -> float:
        return self.world.process.monotonic()

    def sleep(self, seconds: float) -> None:
        self.world.process.sleep(seconds)


@dataclass(frozen=True)
class SimulatedThreading:
    """What the heartbeat uses of the module threading."""

    world: World

    def Event(self) -> "SimulatedEvent":  # noqa: N802 - the module's name
        return SimulatedEvent(self.world)

    def Thread(self, target: Callable[[], object], name: str, daemon: bool) -> "SimulatedThread":  # noqa: N802
        return SimulatedThread(self.world, target)


class SimulatedEvent:
    """A threading.Event that one thread waits for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_set = False
        self._wake: Callable[[], None] = lambda: None

    def set(self) -> None:
        self._is_set = True
        self._wake()

    def wait(self, timeout: float) -> bool:
        task = self._world.task
        ticket = task.ticket
        self._wake = lambda: self._world.at(0, task.resume, ticket, None)
        if not self._is_set:
            task.process.sleep(timeout)
        return self._is_set


class SimulatedThread:
    """A thread of the process that runs."""

    def __init__(self, world: World, target: Callable[[], object]) -> None:
        self._world = world
        self._target = target

    def start(self) -> None:
        self._task = self._world.process.spawn(self._target)

    def join(self) -> None:
        while not self._task.is_over:
            self._task.waiting.append(self._world.task)
            self._world.park()


@dataclass(frozen=True)
class SimulatedOs:
    """What the heartbeat uses of the module os."""

    world: World

    def _exit(self, code: int) -> None:
        process = self.world.process
        self.world.note(process.name, "exits by itself", code)
        self.world.at(0, process.kill)
        self.world.park()
