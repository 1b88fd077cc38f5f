"""Live view: what the lanes do while a training or a measurement runs, beside what was predicted; on a terminal.

The workers' lines drive it (:mod:`.worker.signs`): nothing is asked of them, and between two of their lines nothing is
drawn. A frame is drawn at most every ``EVERY_S``, in the driver's process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

EVERY_S = 1.0
"""Between two frames, at least: one costs 2 ms of a processor that lanes may be measured on."""
BAR = 20
"""Characters of a bar."""

Task = Mapping[str, Any]
Listen = Callable[[str, str], None]


@dataclass(frozen=True)
class Planned:
    """What a view says of a plan: its name, samples per step in all, its predicted median step."""

    label: str
    global_batch: int
    predicted_s: float


@runtime_checkable
class Watcher(Protocol):
    """Progress that also wants to know what the workers say: a tick with three more things to call."""

    def __call__(self, done: int, total: int) -> None:
        """So many tasks (or steps) are done."""

    def plans(self, plans: Sequence[Planned]) -> None:
        """What will run: tasks name these by their ``index``; a training runs the first."""

    def launch(self, lanes: Sequence[str], tasks: Sequence[Task]) -> None:
        """A group of workers begins."""

    def listen(self, lane: str, line: str) -> None:
        """A line of a worker."""


def watcher_of(tick: Callable[[int, int], None]) -> Watcher | None:
    """The watcher that a tick is, if it is one."""
    return tick if isinstance(tick, Watcher) else None


def listener(tick: Callable[[int, int], None], *others: Listen) -> Listen | None:
    """One function for the workers' lines: the watcher's, and others; None where nobody listens."""
    watcher = watcher_of(tick)
    heard = [*others, *([watcher.listen] if watcher is not None else [])]
    if len(heard) < 2:
        return heard[0] if heard else None

    def hear(lane: str, line: str) -> None:
        for each in heard:
            each(lane, line)

    return hear


@dataclass
class LaneState:
    """What a lane has said of itself last."""

    tasks: int = 0
    steps: int = 0
    step_s: float | None = None
    """Mean seconds of the steps since the line before."""
    busy: float | None = None
    """Share of them outside of collectives."""
    rss: int = 0


@dataclass
class View:
    """The state behind the frames: a :class:`Watcher` that draws itself, as ``draw`` says."""

    title: str
    draw: Callable[[RenderableType], None]
    clock: Callable[[], float] = time.monotonic
    lanes: dict[str, LaneState] = field(default_factory=dict)
    known: list[Planned] = field(default_factory=list)
    tasks: Sequence[Task] = ()
    launches: int = 0
    done: int = 0
    total: int | None = None
    _drawn: float = float("-inf")
    _begun: float = 0.0

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def __call__(self, done: int, total: int) -> None:
        """So many tasks are done."""
        self.done, self.total = done, total
        self.refresh()

    def plans(self, plans: Sequence[Planned]) -> None:
        """What will run."""
        self.known = list(plans)

    def launch(self, lanes: Sequence[str], tasks: Sequence[Task]) -> None:
        """A group of workers begins."""
        self.launches += 1
        self.tasks = tasks
        self.lanes = {name: LaneState() for name in lanes}
        self.refresh()

    def listen(self, lane: str, line: str) -> None:
        """Take a line of a worker; one that cannot be read is a sign of life and no more."""
        state = self.lanes.setdefault(lane, LaneState())
        word, _, rest = line.partition(" ")
        if word == "done" and rest.split(" ")[0].isdigit():
            state.tasks = int(rest.split(" ")[0])
            state.step_s = state.busy = None  # the next task may be of another plan
        elif word == "alive" and rest:
            told = figures(rest)
            if told is not None:
                state.steps += int(told["steps"])
                state.step_s = told["s"] / told["steps"]
                state.busy = min(1.0, told["busy"] / told["s"]) if told["s"] > 0 else None
                state.rss = int(told["rss"])
        self.refresh()

    def refresh(self, *, force: bool = False) -> None:
        """Draw a frame, unless one was drawn just now."""
        now = self.clock()
        if force or now - self._drawn >= EVERY_S:
            self._drawn = now
            self.draw(self.frame())

    # ---- what a frame shows ----

    @property
    def task(self) -> Task | None:
        """The task that runs: the first that not all lanes have done."""
        place = min((state.tasks for state in self.lanes.values()), default=0)
        return self.tasks[place] if place < len(self.tasks) else None

    @property
    def plan(self) -> Planned | None:
        """The plan that runs; None between plans."""
        task = self.task or {}
        index = task.get("index", 0 if task.get("op") == "train" else None)
        return self.known[index] if isinstance(index, int) and 0 <= index < len(self.known) else None

    @property
    def step_s(self) -> float | None:
        """Seconds of a step just now: the lanes run in step, so the slowest's."""
        return max((state.step_s for state in self.lanes.values() if state.step_s is not None), default=None)

    def frame(self) -> RenderableType:
        """The view as it stands."""
        return Group(self._progress(), self._speed(), self._table())

    def _progress(self) -> RenderableType:
        task = self.task or {}
        at = [f"launch {self.launches}"] + ([f"round {task['round'] + 1}"] if "round" in task else [])
        at.append(f"{self.done} of {self.total or '?'}")
        seconds = int(self.clock() - self._begun)
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self.total or 1, completed=self.done, width=BAR)
        row.add_row(Text(self.title, style="bold"), bar, ", ".join(at), f"{seconds // 60}:{seconds % 60:02d}")
        return row

    def _speed(self) -> RenderableType:
        plan, now = self.plan, self.step_s
        if plan is None:
            return Text("between plans", style="dim")
        predicted = f"predicted {_rate(plan, plan.predicted_s)}"
        if now is None:
            return Text(f"{plan.label}   {predicted}")
        error = 100 * (plan.predicted_s / now - 1)
        return Text(f"{plan.label}   now {_rate(plan, now)}   {predicted}   error {error:+.1f} %")

    def _table(self) -> RenderableType:
        table = Table(header_style="bold")
        for name in ("lane", "busy", "memory", "step ms", "steps", "tasks"):
            table.add_column(name, justify="left" if name in ("lane", "busy") else "right", no_wrap=True)
        for name, state in self.lanes.items():
            table.add_row(
                name,
                _bar(state.busy),
                f"{state.rss / 2**20:.0f} MiB" if state.rss else "-",
                f"{1e3 * state.step_s:.1f}" if state.step_s is not None else "-",
                str(state.steps),
                f"{state.tasks}/{len(self.tasks)}",
            )
        return table


def figures(text: str) -> dict[str, float] | None:
    """The figures of a line; None where they cannot be read, or none of them counts anything."""
    try:
        told = json.loads(text)
        found = {name: float(told[name]) for name in ("steps", "s", "busy", "rss")}
    except (ValueError, KeyError, TypeError):
        return None
    return found if found["steps"] >= 1 else None


def _bar(share: float | None) -> str:
    if share is None:
        return "-"
    full = round(BAR * share)
    return f"{'█' * full}{'░' * (BAR - full)} {100 * share:3.0f} %"


def _rate(plan: Planned, seconds: float) -> str:
    return f"{plan.global_batch / seconds:.4g} samples/s ({1e3 * seconds:.4g} ms)"


@contextmanager
def live(console: Console, title: str) -> Iterator[View]:
    """A view on the console, for as long as it is open; what the console prints meanwhile stands above it."""
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        view = View(title, lambda frame: screen.update(frame, refresh=True))
        yield view
        view.refresh(force=True)


def wanted(choice: bool | None, console: Console, *, as_json: bool) -> bool:
    """Whether to show it: as asked, else on a terminal and not beside ``--json``."""
    return console.is_terminal and not as_json if choice is None else choice
