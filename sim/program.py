"""Program: a plan made ready for the engine: who does which piece of work, how long alone, and what waits for what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..results.record import Fidelity
from .network import Transfer
from .schedule import Piece

PREFETCH = 2
"""Micro-batches that an input pipeline loads ahead of each consumer."""


@dataclass(frozen=True, slots=True)
class Send:
    """What a finished piece sends on: over which channel, for which chunk of which worker."""

    channel: int
    target: int
    chunk: int
    transfer: Transfer


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work of one size: its times without noise, what it waits for and what it sends."""

    compute_s: tuple[float, ...]
    """Per member of the worker."""
    communication_s: float
    """Collectives of the tensor-parallel group, which follow the layers they belong to."""
    samples: int
    held_bytes: float
    """Activations kept on each device from the forward to the backward."""
    guessed_s: float
    needs: int = 0
    """Messages that must have arrived."""
    sends: tuple[Send, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration of the piece: the slowest member computes, then the group communicates."""
        return max(self.compute_s) + self.communication_s


@dataclass(frozen=True, slots=True)
class Beside:
    """A synchronisation that runs beside the backward pass."""

    sync: int
    chunk: int
    rest_s: float
    """How long before the end of the chunk's last backward its gradients are complete."""


@dataclass(frozen=True, slots=True)
class Gather:
    """ZeRO-3: the weights of a chunk are gathered from its peers for each piece, gradients scattered after it."""

    group: int
    peers: int
    forward: Transfer
    backward: Transfer
    layers: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A group of devices that work on the same stages of one pipeline, in the order of their schedule."""

    members: tuple[tuple[str, ...], ...]
    """Devices by equal times: the first of each stands for the others."""
    pipeline: int
    position: int
    stages: tuple[int, ...]
    """Per chunk, the number of its stage."""
    pieces: tuple[Piece, ...]
    classes: tuple[int, ...]
    """Per micro-batch, which of the jobs of its chunk it is."""
    jobs: tuple[tuple[tuple[Job, ...], ...], tuple[tuple[Job, ...], ...]]
    """``jobs[backward][chunk][class]``."""
    optimizer_s: tuple[float, ...]
    """Per member."""
    overlapping: bool
    beside: tuple[Beside, ...] = ()
    """Synchronisations beside the backward pass, in order."""
    after: tuple[int, ...] = ()
    """Synchronisations between the last backward and the optimizer, in order."""
    final: tuple[int, ...] = ()
    """Synchronisations after the optimizer, in order."""
    gathers: tuple[Gather, ...] = ()
    """Per chunk, with ZeRO-3."""
    loader: int | None = None
    """The input pipeline that feeds its first chunk."""
    copies: int = 1
    """Workers that this one stands for, itself included."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of all devices of the group."""
        return tuple(name for member in self.members for name in member)

    @property
    def every_job(self) -> Iterator[Job]:
        """All its jobs: of each chunk and class, forward and backward."""
        return (job for direction in self.jobs for jobs in direction for job in jobs)

    def beside_by_place(self) -> dict[int, list[tuple[int, float]]]:
        """Per piece (its place in the order): synchronisations that become ready in it, and how long before its end."""
        last = {piece.chunk: place for place, piece in enumerate(self.pieces) if piece.backward}
        found: dict[int, list[tuple[int, float]]] = {}
        for each in self.beside:
            found.setdefault(last[each.chunk], []).append((each.sync, each.rest_s))
        return found

    def job(self, piece: Piece) -> Job:
        """What a piece is."""
        return self.jobs[piece.backward][piece.chunk][self.classes[piece.micro_batch]]


@dataclass(frozen=True, slots=True)
class Sync:
    """A collective of workers, each with all its tensor-parallel ranks: it begins when the last has entered."""

    workers: tuple[int, ...]
    transfer: Transfer
    every: int = 1
    """Entered in the first step and each so many steps after it."""
    beside: bool = False
    """Whether it runs beside the backward pass: then the one before it over the same workers goes first."""


@dataclass(frozen=True, slots=True)
class Loader:
    """The input pipeline of a node: which micro-batches it loads, in order."""

    samples_per_s: float
    queue: tuple[tuple[int, int, int], ...]
    """(worker, micro-batch, samples), in the order of a step."""


@dataclass(frozen=True, slots=True)
class Program:
    """All workers of a plan, the channels between them, and their synchronisations."""

    workers: tuple[Worker, ...]
    channels: int
    syncs: tuple[Sync, ...]
    loaders: tuple[Loader, ...]
    capacities: tuple[float, ...]
    sync_every: int = 1
    fidelity: Fidelity = "datasheet"
    """The weakest among the devices that work."""
    pulled: bool = False
    """Whether the micro-batches of each worker are those of all, and go to whoever is free (:mod:`.pull`)."""
    stands_for: dict[str, str] = field(default_factory=dict)
    """Per device of a folded pipeline, the device whose events are its own too."""

    @property
    def segments(self) -> int:
        """Intervals that one step of the program leaves in a record, at most."""
        return sum(
            len(worker.members)
            * (3 * len(worker.pieces) + 2 * (len(worker.beside) + len(worker.after) + len(worker.final)) + 2)
            for worker in self.workers
        )
