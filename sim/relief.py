"""Relief: a program with some of its causes of delay halved, everything else as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .critical import GATHERING, MESSAGES, activities
from .network import Transfer
from .program import Beside, Gather, Job, Program, Worker

Unit = tuple[int, int]
"""A worker's number, and which of its members."""
Change = Callable[[Transfer, str], Transfer]
"""Of a transfer for a purpose."""


@dataclass(frozen=True, slots=True)
class Relief:
    """What takes half as long."""

    compute: frozenset[Unit] = frozenset()
    """Forward and backward of these members."""
    tensor: frozenset[int] = frozenset()
    """Collectives of these tensor-parallel groups."""
    optimizer: frozenset[Unit] = frozenset()
    links: frozenset[int] = frozenset()
    """Resources of twice the capacity."""
    latencies: frozenset[str] = frozenset()
    """What is transferred with half the latency."""
    transfers: frozenset[str] = frozenset()
    """What is transferred with half the latency and half the bytes."""
    loaders: frozenset[int] = frozenset()
    """Input pipelines of twice the rate."""

    def __or__(self, other: Relief) -> Relief:
        """Both."""
        return Relief(
            self.compute | other.compute,
            self.tensor | other.tensor,
            self.optimizer | other.optimizer,
            self.links | other.links,
            self.latencies | other.latencies,
            self.transfers | other.transfers,
            self.loaders | other.loaders,
        )


def relieved(program: Program, relief: Relief) -> Program:
    """The program with this relief."""
    capacities = tuple(each * (1 + (number in relief.links)) for number, each in enumerate(program.capacities))
    change = _change(program.capacities, capacities, relief)
    names = activities(program)
    return replace(
        program,
        workers=tuple(_worker(number, worker, relief, change) for number, worker in enumerate(program.workers)),
        syncs=tuple(
            replace(sync, transfer=change(sync.transfer, name)) for sync, name in zip(program.syncs, names, strict=True)
        ),
        loaders=tuple(
            replace(each, samples_per_s=each.samples_per_s * (1 + (number in relief.loaders)))
            for number, each in enumerate(program.loaders)
        ),
        capacities=capacities,
    )


def busiest(transfer: Transfer, capacities: Sequence[float]) -> float:
    """Seconds per byte of a transfer by itself, on the resource that it loads most."""
    return max((weight / capacities[resource] for resource, weight in transfer.uses), default=0.0)


def _change(before: Sequence[float], after: Sequence[float], relief: Relief) -> Change:
    known: dict[tuple[int, str], tuple[Transfer, Transfer]] = {}

    def change(transfer: Transfer, name: str) -> Transfer:
        key = (id(transfer), name)
        if key not in known:  # the old one is kept, so that its id stays its own
            known[key] = (transfer, changed(transfer, name))
        return known[key][1]

    def changed(transfer: Transfer, name: str) -> Transfer:
        whole = name in relief.transfers
        latency_s = transfer.latency_s / (2 if whole or name in relief.latencies else 1)
        volume_bytes, flow_s = transfer.volume_bytes, transfer.alone_s - transfer.latency_s
        if whole:
            volume_bytes, flow_s = volume_bytes / 2, flow_s / 2
        if relief.links and transfer.uses:
            flow_s *= busiest(transfer, after) / busiest(transfer, before)
        return replace(transfer, latency_s=latency_s, volume_bytes=volume_bytes, alone_s=latency_s + flow_s)

    return change


def _worker(number: int, worker: Worker, relief: Relief, change: Change) -> Worker:
    halved = tuple((number, member) in relief.compute for member in range(len(worker.members)))
    jobs = tuple(
        tuple(tuple(_job(job, halved, number in relief.tensor, change) for job in chunk) for chunk in direction)
        for direction in worker.jobs
    )
    made = replace(
        worker,
        jobs=(jobs[0], jobs[1]),
        optimizer_s=tuple(
            seconds / (1 + ((number, member) in relief.optimizer)) for member, seconds in enumerate(worker.optimizer_s)
        ),
        gathers=tuple(_gather(gather, change) for gather in worker.gathers),
    )
    return replace(made, beside=tuple(_beside(each, worker, made) for each in worker.beside))


def _job(job: Job, halved: tuple[bool, ...], tensor: bool, change: Change) -> Job:
    return replace(
        job,
        compute_s=tuple(seconds / (1 + half) for seconds, half in zip(job.compute_s, halved, strict=True)),
        communication_s=job.communication_s / (1 + tensor),
        sends=tuple(replace(send, transfer=change(send.transfer, MESSAGES)) for send in job.sends),
    )


def _gather(gather: Gather, change: Change) -> Gather:
    return replace(gather, forward=change(gather.forward, GATHERING), backward=change(gather.backward, GATHERING))


def _beside(each: Beside, before: Worker, after: Worker) -> Beside:
    """Gradients are complete as much earlier as the backward pass that makes them is shorter."""
    last = next(piece for piece in reversed(before.pieces) if piece.backward and piece.chunk == each.chunk)
    seconds = before.job(last).seconds
    return replace(each, rest_s=each.rest_s * after.job(last).seconds / seconds) if seconds else each
