"""Virtual time for real code: processes whose threads are greenlets, of which chance alone decides who is next.

Code that runs here calls `World.sleep` and `World.park` (through the simulated store, Ray, time and threading) wherever
a real process would wait. Between two waits nothing else runs, so one seed gives one course of events, to the bit.
"""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from greenlet import getcurrent, greenlet

from tests.cluster.stores import Killed


class World:
    """One course of events; everything random in it comes from `seed`. Keeps the last `traced` events, or all."""

    def __init__(self, seed: int, traced: int | None) -> None:
        self.random = random.Random(seed)
        self.now = 0.0  # seconds
        self.num_events = 0
        self.violation: str | None = None
        self.trace: deque[tuple[float, str, str, tuple[Any, ...]]] = deque(maxlen=traced)
        self.counts: Counter[str] = Counter()  # faults by kind
        self.processes: list[Process] = []
        self.is_closed = False
        self.hub = getcurrent()
        self._current: Task | None = None
        self._events: list[tuple[float, float, int, Callable[..., object], tuple[Any, ...]]] = []

    @property
    def task(self) -> "Task":
        """The thread that runs now."""
        assert self._current is not None
        return self._current

    @property
    def process(self) -> "Process":
        """The process that runs now."""
        return self.task.process

    def at(self, delay_s: float, action: Callable[..., object], *args: Any) -> None:
        """Let `action` happen in `delay_s` seconds; of events at one instant chance chooses the first."""
        self.num_events += 1
        heapq.heappush(self._events, (self.now + delay_s, self.random.random(), self.num_events, action, args))

    def run(self, is_over: Callable[[], bool], until_s: float) -> bool:
        """Let everything happen until it is over, a rule is broken, or the time is up; whether it is over."""
        while self._events and not is_over() and self.violation is None:
            time, _, _, action, args = heapq.heappop(self._events)
            if time > until_s:
                return False
            self.now = time
            action(*args)
        return is_over()

    def close(self) -> None:
        """End what still runs, without consequences."""
        self._events.clear()
        self.is_closed = True
        for process in self.processes:
            process.kill()

    def sleep(self, seconds: float) -> None:
        """Let the thread that runs wait."""
        task = self.task
        self.at(seconds, task.resume, task.ticket, None)
        self.park()

    def park(self) -> Any:
        """Let the thread that runs wait until it is resumed; the value it is resumed with."""
        if self.task.process.is_dead:
            raise Killed
        return self.hub.switch()

    def switch(self, task: "Task", value: object, *, is_kill: bool = False) -> None:
        """Let a thread go on, or end it; only the event loop may."""
        self._current = task
        if is_kill:
            task.greenlet.throw(Killed)
        else:
            task.greenlet.switch(value)
        self._current = None

    def note(self, who: str, what: str, *details: Any) -> None:
        """Remember an event for the trace of a violation."""
        self.trace.append((self.now, who, what, details))

    def told(self) -> Iterator[str]:
        """The trace as lines: virtual seconds, who, what and its details."""
        for time, who, what, details in self.trace:
            yield f"{time:9.3f} {who:20} {what} {', '.join(map(str, details))}"

    def break_rule(self, text: str) -> None:
        """A rule was broken: the simulation ends after this event. The first one is kept."""
        self.note("RULE", text)
        self.violation = self.violation or text


class Task:
    """A thread of a process."""

    def __init__(self, process: "Process", target: Callable[[], object]) -> None:
        self.process = process
        self.ticket = 0  # names one wait, so that who comes too late wakes nobody
        self.is_over = False
        self.waiting: list[Task] = []
        self._target = target
        self._began = False
        self.greenlet = greenlet(self._main, parent=process.world.hub)

    def resume(self, ticket: int, value: object) -> None:
        """Go on after the wait `ticket`; a frozen process goes on when it thaws, a dead one never."""
        process = self.process
        world = process.world
        if ticket != self.ticket or process.is_dead or self.is_over:
            return
        if world.now < process.frozen_until:
            world.at(process.frozen_until - world.now, self.resume, ticket, value)
            return
        self.ticket += 1
        self._began = True
        world.switch(self, value)

    def kill(self) -> None:
        """Let nothing of it happen any more; what Python does on the way out finds a dead process."""
        if self._began and not self.is_over:
            self.process.world.switch(self, None, is_kill=True)
        self.is_over = True

    def _main(self, _: object) -> None:
        error: BaseException | None = None
        try:
            self._target()
        except BaseException as caught:  # noqa: BLE001 - told to the process
            error = caught
        self.is_over = True
        for task in self.waiting:
            self.process.world.at(0, task.resume, task.ticket, None)
        self.process.note_end(self, error)


class Process:
    """Threads that live and die together, with a monotonic clock of their own that may run fast or slow.

    on_exit: called once, with what ended the process: None, the error of its first thread, or Killed.
    """

    def __init__(
        self, world: World, name: str, target: Callable[[], object], on_exit: Callable[[BaseException | None], object]
    ) -> None:
        self.world = world
        self.name = name
        self.is_dead = False
        self.frozen_until = 0.0
        self._on_exit = on_exit
        self._rate = world.random.uniform(0.95, 1.05)
        self._offset = world.random.uniform(0, 1e5)
        self._tasks: list[Task] = []
        world.processes.append(self)
        self.spawn(target)

    def spawn(self, target: Callable[[], object]) -> Task:
        """Start a thread."""
        task = Task(self, target)
        self._tasks.append(task)
        self.world.at(0, task.resume, task.ticket, None)
        return task

    def monotonic(self) -> float:
        """Seconds on this process's clock."""
        return self._offset + self._rate * self.world.now

    def sleep(self, seconds: float) -> None:
        """Wait by this process's clock."""
        self.world.sleep(seconds / self._rate)

    def freeze(self, seconds: float) -> None:
        """Let nothing of it happen for a while."""
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)

    def kill(self) -> None:
        """End it here and now; only the event loop may, a thread asks for it with `World.at`."""
        self._end(Killed())

    def note_end(self, task: Task, error: BaseException | None) -> None:
        """With its first thread a process ends; that of another one changes nothing, as in Python."""
        if task is self._tasks[0] and not self.is_dead:
            self.world.at(0, self._end, error)

    def _end(self, error: BaseException | None) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        for task in self._tasks:
            task.kill()
        if not self.world.is_closed:
            self._on_exit(error)
