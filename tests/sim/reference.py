"""A second engine, as small as it can be: no events, no processes, just when each thing is over, computed in order.

It shares nothing with the engine but the data that goes in. One step: each device works through its micro-batches, the
last one to finish lets the all-reduce begin, and everybody updates after it.
"""

from __future__ import annotations

from collections.abc import Iterator


class Machine:
    """A device by its figures: seconds of each micro-batch, and of the update; factors of noise in order of use."""

    def __init__(
        self,
        forward: list[float],
        backward: list[float],
        update: float,
        compute_noise: Iterator[float],
        update_noise: Iterator[float],
    ) -> None:
        self.forward, self.backward, self.update = forward, backward, update
        self.compute_noise, self.update_noise = compute_noise, update_noise
        self.free_at = 0.0
        self.spans: list[tuple[str, float, float]] = []

    def work(self, kind: str, seconds: float) -> None:
        """Be busy for some seconds from now on."""
        self.until(kind, self.free_at + seconds)

    def until(self, kind: str, end: float) -> None:
        """Be busy until a moment."""
        self.spans.append((kind, self.free_at, end))
        self.free_at = end


def run(machines: list[Machine], sync: list[float]) -> list[float]:
    """Run one step per entry of ``sync`` (seconds of its all-reduce); the moments at which the steps are over."""
    ends = []
    for seconds in sync:
        for machine in machines:
            for forward, backward in zip(machine.forward, machine.backward, strict=True):
                factor = next(machine.compute_noise)
                machine.work("compute_s", forward * factor)
                machine.work("compute_s", backward * factor)
        if len(machines) > 1:
            begin = max(machine.free_at for machine in machines)
            for machine in machines:
                machine.until("wait_s", begin)
                machine.work("communication_s", seconds)
        for machine in machines:
            machine.work("optimizer_s", machine.update * next(machine.update_noise))
        ends.append(max(machine.free_at for machine in machines))
    return ends


def ledger(machine: Machine, begin: float, end: float, steps: int) -> dict[str, float]:
    """Mean seconds per step of each line between two moments; what is under no line is idle."""
    lines = dict.fromkeys(("compute_s", "wait_s", "communication_s", "optimizer_s"), 0.0)
    for kind, start, stop in machine.spans:
        lines[kind] += max(0.0, min(stop, end) - max(start, begin)) / steps
    lines["idle_s"] = (end - begin) / steps - sum(lines.values())
    return lines
