"""Pull: micro-batches that nobody owns, each taken by the first device that is free.

The devices of a data-parallel plan share one pool: all micro-batches of all pipelines, larger ones first. Whoever is
through with one takes the next (forward and backward together) until the pool is empty; asking takes no time. Which
micro-batch is a device's last is not known before, so that gradients are synchronised when all are through, and not
beside the backward pass. A device that got nothing takes part in that with gradients of zero.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from .plan import Plan
from .program import Program, Worker
from .running import Factors, Launch, Recorder, Row
from .schedule import Piece


def pooled(plan: Plan) -> Plan:
    """The plan of a device's work if it had to take everything: what its memory and its times are made for."""
    sizes = sorted((size for pipeline in plan.pipelines for size in pipeline.micro_batches), reverse=True)
    pipelines = [pipeline.model_copy(update={"micro_batches": sizes}) for pipeline in plan.pipelines]
    return plan.model_copy(update={"pipelines": pipelines, "dispatch": "static", "overlap": False})


def run_launch(
    program: Program, factors: Factors | None = None, *, steps: int, launch: int = 0, record: bool = True
) -> Launch:
    """One launch of the program of a :func:`pooled` plan.

    Arguments and result are those of :func:`.loop.run_launch`; the factor on a piece is its device's for that
    micro-batch of the step.
    """
    run = _Run(program, factors or Factors(), launch=launch, record=record)
    for step in range(steps):
        run.step(step)
    for recorder in run.recorders:
        run.result.activations.update(dict.fromkeys(recorder.names, recorder.most))
    return run.result


def samples_of(program: Program, rows: Sequence[Row]) -> dict[str, int]:
    """Samples that each device took, by the record of what it did."""
    found = {worker.devices[0]: 0 for worker in program.workers}
    jobs, classes = program.workers[0].jobs[0][0], program.workers[0].classes
    for row in rows:
        if row[7] == "forward":
            found[row[3]] += jobs[classes[row[6]]].samples
    return found


class _Run:
    """The clocks of all devices."""

    def __init__(self, program: Program, factors: Factors, *, launch: int, record: bool) -> None:
        self.program = program
        self.factors = factors
        self.result = Launch(events=[] if record else None)
        rows = self.result.events
        self.recorders = [Recorder(worker, launch, rows) for worker in program.workers] if rows is not None else []
        self.clocks = [0.0] * len(program.workers)

    def step(self, step: int) -> None:
        """The pool until it is empty, the synchronisations, the optimizer."""
        free = [(clock, number) for number, clock in enumerate(self.clocks)]
        heapq.heapify(free)
        for micro_batch in range(len(self.program.workers[0].classes)):
            _, number = heapq.heappop(free)
            self._take(step, number, micro_batch)
            heapq.heappush(free, (self.clocks[number], number))
        for sync in self.program.workers[0].after:
            self._meet(step, sync)
        for number, worker in enumerate(self.program.workers):
            self._update(step, number, worker)
        self.result.ends.append(max(self.clocks))

    def _take(self, step: int, number: int, micro_batch: int) -> None:
        """Forward and backward of one micro-batch."""
        worker, factors = self.program.workers[number], self.factors.compute.get(self._name(number))
        factor = factors[step * len(worker.classes) + micro_batch] if factors else 1.0
        for backward in (False, True):
            piece = Piece(backward, 0, micro_batch)
            job, start = worker.job(piece), self.clocks[number]
            seconds = job.compute_s[0] * factor
            self.clocks[number] = start + seconds
            if self.recorders:
                self.recorders[number].work(step, piece, job, times=(seconds,), start=start, end=start + seconds)

    def _meet(self, step: int, number: int) -> None:
        """A collective of everybody."""
        sync, factors = self.program.syncs[number], self.factors.syncs.get(number)
        begin = max(self.clocks[worker] for worker in sync.workers)
        end = begin + sync.transfer.alone_s * (factors[step] if factors else 1.0)
        for worker in sync.workers:
            if self.recorders:
                self.recorders[worker].exposed(step, number, begin=begin, start=self.clocks[worker], end=end)
            self.clocks[worker] = end

    def _update(self, step: int, number: int, worker: Worker) -> None:
        factors = self.factors.optimizer.get(self._name(number))
        seconds = worker.optimizer_s[0] * (factors[step] if factors else 1.0)
        if self.recorders:
            self.recorders[number].update(step, (seconds,), self.clocks[number])
        self.clocks[number] += seconds

    def _name(self, number: int) -> str:
        return self.program.workers[number].devices[0]
