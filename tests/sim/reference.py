"""A second engine, as small as it can be: no events, no processes, just when each thing is over, computed in order.

It shares nothing with the engine but the data that goes in. One step: each worker goes through its passes in the order
of its schedule, each as soon as the pass before it is over and what it needs has come; then the collectives, each when
its last member is there; then everybody's update. Nobody shares a link, so a message takes what it takes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Pass = tuple[bool, int, int]
"""Backward or not, stage, micro-batch."""


@dataclass
class Pipe:
    """A pipeline by its figures; stage s is on worker s modulo their number. Seconds are [stage][micro-batch]."""

    label: str
    schedule: str
    workers: int
    forward: list[list[float]]
    backward: list[list[float]]
    latency: list[float]
    """From each stage to the next one, and back."""
    busy: list[list[float]]
    """Seconds that its message occupies the link, one message after the other in the order of sending."""
    updates: list[float]
    """Per worker."""
    waiting: bool = False
    """Whether who sends waits until the message has left."""
    compute_noise: list[list[float]] = field(default_factory=list)
    """Per worker, the factors of a step's micro-batches of its first stage, then of its second, and so on."""
    update_noise: list[list[float]] = field(default_factory=list)
    """Per worker and step."""

    @property
    def stages(self) -> int:
        """How many stages there are."""
        return len(self.forward)

    def name(self, worker: int) -> str:
        """What the worker is called in records."""
        return f"{self.label}{worker}"


@dataclass
class Lane:
    """A worker's clock, and what it spent its time on."""

    free_at: float = 0.0
    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def until(self, kind: str, end: float) -> None:
        """Be busy until a moment, if it is still to come."""
        if end > self.free_at:
            self.spans.append((kind, self.free_at, end))
            self.free_at = end


def order(pipe: Pipe, worker: int) -> list[Pass]:
    """The passes of a worker, by the rules of GPipe (2019), 1F1B (2019) and interleaved 1F1B (2021)."""
    count, chunks = len(pipe.forward[0]), pipe.stages // pipe.workers
    group = pipe.workers if pipe.schedule == "interleaved" else count

    def nth(backward: bool, number: int) -> Pass:
        turn, rest = divmod(number, group * chunks)
        chunk = rest // group
        chunk = chunks - 1 - chunk if backward else chunk
        return backward, chunk * pipe.workers + worker, turn * group + rest % group

    total, behind = count * chunks, pipe.workers - 1 - worker
    ahead = total
    if pipe.schedule == "1f1b" or pipe.stages == 1:
        ahead = behind
    elif pipe.schedule == "interleaved":
        ahead = 2 * behind + (chunks - 1) * pipe.workers
    passes = [nth(False, number) for number in range(min(ahead, total))]
    for number in range(total):
        if ahead + number < total:
            passes.append(nth(False, ahead + number))
        passes.append(nth(True, number))
    return passes


def run(
    pipes: Sequence[Pipe], syncs: Sequence[tuple[Sequence[tuple[int, int]], Sequence[float]]], steps: int
) -> tuple[list[float], dict[str, Lane]]:
    """When each step is over, and every worker's time by name.

    ``syncs`` are collectives after the last backward pass: their members (pipe, worker), and their seconds per step.
    """
    lanes = [[Lane() for _ in range(pipe.workers)] for pipe in pipes]
    links: dict[tuple[int, int, int], float] = {}
    ends = []
    for step in range(steps):
        for number, pipe in enumerate(pipes):
            _passes(pipe, lanes[number], links, number, step)
        for members, seconds in syncs:
            begin = max(lanes[pipe][worker].free_at for pipe, worker in members)
            for pipe, worker in members:
                lanes[pipe][worker].until("wait_s", begin)
                lanes[pipe][worker].until("communication_s", begin + seconds[step])
        for pipe, row in zip(pipes, lanes, strict=True):
            for worker, lane in enumerate(row):
                factor = pipe.update_noise[worker][step] if pipe.update_noise else 1.0
                lane.until("optimizer_s", lane.free_at + pipe.updates[worker] * factor)
        ends.append(max(lane.free_at for row in lanes for lane in row))
    names = {pipe.name(w): lane for pipe, row in zip(pipes, lanes, strict=True) for w, lane in enumerate(row)}
    return ends, names


def _passes(pipe: Pipe, lanes: list[Lane], links: dict[tuple[int, int, int], float], number: int, step: int) -> None:
    """The passes of one step: whoever can go on does, until nobody has anything left."""
    left = [order(pipe, worker) for worker in range(pipe.workers)]
    arrived: dict[Pass, float] = {}
    first, last = (False, 0), (True, pipe.stages - 1)
    while any(left):
        able = [w for w, each in enumerate(left) if each and (each[0][:2] in (first, last) or each[0] in arrived)]
        assert able, "everybody waits"
        for worker in able:
            backward, stage, micro_batch = this = left[worker].pop(0)
            lane = lanes[worker]
            lane.until("bubble_s", arrived.get(this, 0.0))
            factor = 1.0
            if pipe.compute_noise:
                each = len(pipe.forward[0])
                place = step * each * (pipe.stages // pipe.workers) + stage // pipe.workers * each + micro_batch
                factor = pipe.compute_noise[worker][place]
            seconds = (pipe.backward if backward else pipe.forward)[stage][micro_batch]
            lane.until("compute_s", lane.free_at + seconds * factor)
            target = stage - 1 if backward else stage + 1
            if not 0 <= target < pipe.stages:
                continue
            hop, link = min(stage, target), (number, worker, target % pipe.workers)
            gone, latency = lane.free_at, 0.0
            if target % pipe.workers != worker:
                latency = pipe.latency[hop]
                gone = links[link] = max(lane.free_at, links.get(link, 0.0)) + pipe.busy[hop][micro_batch]
                if pipe.waiting:
                    lane.until("communication_s", gone)
            arrived[backward, target, micro_batch] = gone + latency


def ledger(lane: Lane, begin: float, end: float, steps: int) -> dict[str, float]:
    """Mean seconds per step of each line between two moments; what is under no line is idle."""
    lines = dict.fromkeys(("compute_s", "bubble_s", "wait_s", "communication_s", "optimizer_s"), 0.0)
    for kind, start, stop in lane.spans:
        lines[kind] += max(0.0, min(stop, end) - max(start, begin)) / steps
    lines["idle_s"] = (end - begin) / steps - sum(lines.values())
    return lines
