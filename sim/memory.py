"""Memory: bytes on each device at the peak of a step, term by term, in closed form over the order of the schedule.

Counted are weights, gradients and optimizer states (ZeRO: Rajbhandari et al. 2020, section 3.1), the activations of the
micro-batches in flight (Korthikanti et al. 2022, section 4), and buffers of recomputation, transfers and collectives.
What a framework takes before the model's first byte (context, communication buffers) is ``Device.overhead_gib``.

Where frameworks differ, this is assumed:

- Gradients are reduced in place, in one contiguous buffer (Megatron-LM; DDP's ``gradient_as_bucket_view``): a bucket
  takes memory of its own only where gradients are sharded (ZeRO 2 and 3), since it is whole until it is sent.
- A layer's activations include its inputs. Sequence parallelism gathers the input of one layer at a time.
- A stage has two receive buffers for its inputs and two for the gradients of its outputs. What skips a stage waits at
  its sender, until the sender's own backward pass.
- Peers, over which ZeRO shards, hold the same part of the same layer: equal tensor degree, equal rank. Replicas of
  another tensor degree hold other parts, and are no peers.
- A layer tied to one that its device does not hold has a copy of it: weights, gradients and states (as in Megatron-LM).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

from . import footprint
from .device import GIB, Device
from .footprint import Cut
from .schedule import Piece, deal_samples, in_turns, most_in_flight, order
from .workload import OPTIMIZER_STATES, Workload

if TYPE_CHECKING:
    from .plan import Pipeline, Plan, Stage

Violation = tuple[str, str, str]
"""Path, problem and mend of a plan that breaks a rule."""
BUFFERS = 2
"""Receive buffers per direction: one is filled while the other is read."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device at the peak of a step."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    """Optimizer states, with fp32 weights where the model's are shorter."""
    activations: float = 0.0
    """Of the micro-batches in flight, at their most."""
    recomputed: float = 0.0
    """What recomputation brings back, of one layer at a time."""
    transfer: float = 0.0
    """Receive buffers between stages."""
    collective: float = 0.0
    """A bucket of gradients, a gathered ZeRO-3 layer, the gathered input of a sequence-parallel layer."""
    stage: int = 0
    """Number, in its pipeline, of the device's stage with the most activations."""

    @property
    def static(self) -> float:
        """All but the activations: what does not change within a step."""
        return self.weights + self.gradients + self.optimizer + self.recomputed + self.transfer + self.collective

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return self.static + self.activations

    def terms(self) -> dict[str, float]:
        """Bytes by term, the largest first."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "stage"}
        return dict(sorted(named.items(), key=lambda term: -term[1]))

    def largest_term(self) -> tuple[str, float]:
        """Name and bytes of the largest term."""
        return next(iter(self.terms().items()))


class Group(NamedTuple):
    """The devices of a replica, and the stages of the pipeline that they hold: a worker of the schedule."""

    devices: tuple[str, ...]
    stages: tuple[int, ...]
    """Numbers of the stages, in order: the worker's chunks."""
    replicas: tuple[int, ...]
    """Per chunk, which of the stage's replicas the devices are."""
    position: int
    """Among the workers of the pipeline, in the order of their first stages."""
    workers: int
    """How many there are; the replicas of a stage have one position."""


def positions(pipeline: Pipeline) -> list[int]:
    """Per stage, the place of its workers in the pipeline: stages on the same devices share one."""
    seen: dict[tuple[tuple[str, ...], ...], int] = {}
    return [
        seen.setdefault(tuple(tuple(replica.devices) for replica in stage.replicas), len(seen))
        for stage in pipeline.stages
    ]


def groups(pipeline: Pipeline) -> list[Group]:
    """The workers of a pipeline; a device must not be in two of them."""
    places = positions(pipeline)
    held: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for number, stage in enumerate(pipeline.stages):
        for index, replica in enumerate(stage.replicas):
            held.setdefault(tuple(replica.devices), []).append((number, index))
    workers = max(places) + 1
    return [
        Group(devices, tuple(c[0] for c in chunks), tuple(c[1] for c in chunks), places[chunks[0][0]], workers)
        for devices, chunks in held.items()
    ]


def pieces(plan: Plan, pipeline: Pipeline, group: Group) -> tuple[Piece, ...]:
    """What a worker does in a step, in order.

    A pipeline of a single stage accumulates gradients, whatever the schedule: as in 1F1B with no stage behind.
    """
    kind = plan.schedule if len(pipeline.stages) > 1 else "1f1b"
    found = order(kind, group.workers, group.position, len(group.stages), len(pipeline.micro_batches))
    return found if pipeline.order is None else in_turns(found, group.stages, pipeline.order)


def peak(workload: Workload, plan: Plan) -> dict[str, Memory]:
    """Memory of every device of a plan (which is valid otherwise), by name."""
    peers = Peers(plan) if plan.zero else None
    known: dict[object, list[_Member]] = {}
    found: dict[str, Memory] = {}
    for pipeline in plan.pipelines:
        key = shape(pipeline)
        if key not in known:
            known[key] = [_member(workload, plan, pipeline, group, peers) for group in groups(pipeline)]
        for member in known[key]:
            devices = pipeline.stages[member.stage].replicas[member.replica].devices
            if plan.zero == 0 or plan.state_shares is None:
                found.update(dict.fromkeys(devices, member.memory))
            else:
                found.update({name: _with_share(workload, plan, member, plan.state_shares[name]) for name in devices})
    return found


def held_per_micro_batch(workload: Workload, stage: Stage, samples: int, tensor_degree: int) -> float:
    """Bytes that each device of a replica keeps from the forward pass of so many samples to their backward pass."""
    return samples * footprint.kept_bytes(workload, _cut(stage, tensor_degree))


def _cut(stage: Stage, degree: int) -> Cut:
    return Cut(stage.first, stage.last, degree, stage.recompute, stage.sequence_parallel)


def check(workload: Workload, devices: Mapping[str, Device], plan: Plan) -> Violation | None:
    """The first violation of a plan that is valid otherwise: state shares that do not add up, memory exceeded."""
    wrong = check_shares(plan)
    if wrong is not None:
        return wrong
    found = peak(workload, plan)
    for index, pipeline in enumerate(plan.pipelines):
        for name in pipeline.devices:
            if found[name].total > devices[name].memory_bytes:
                return _too_much(workload, plan, index, devices[name], found[name])
    return None


def check_shares(plan: Plan) -> Violation | None:
    """What is wrong with ``plan.state_shares``, if anything: those of the peers of every layer must sum to 1."""
    shares = plan.state_shares
    if shares is None:
        return None
    names = {name for pipeline in plan.pipelines for name in pipeline.devices}
    if names != shares.keys():
        name = min(names ^ shares.keys())
        return "state_shares", f"{'lack' if name in names else 'name'} {name!r}", "they are one per device of the plan"
    for first, last, holders in Peers(plan):
        total = sum(shares[name] for name in holders)
        if abs(total - 1) > 1e-6:
            who = ", ".join(holders[:4]) + (", ..." if len(holders) > 4 else "")
            problem = f"sum to {total:.6g} over {who}, which hold the same part of layers {first} to {last}"
            return "state_shares", problem, "they must sum to 1"
    return None


class Run(NamedTuple):
    """Layers [first, last) and the number of devices that hold the same part of them, this one included."""

    first: int
    last: int
    peers: int


class Peers:
    """Who holds the same layers with the same tensor degree, over all pipelines: ZeRO shards over these."""

    def __init__(self, plan: Plan) -> None:
        stages = [stage for pipeline in plan.pipelines for stage in pipeline.stages]
        self._bounds = sorted({bound for stage in stages for bound in (stage.first, stage.last)})
        self._replicas: dict[tuple[int, int], list[Sequence[str]]] = {}
        for stage in stages:
            for part in self._parts(stage.first, stage.last):
                for replica in stage.replicas:
                    self._replicas.setdefault((part, len(replica.devices)), []).append(replica.devices)

    def __iter__(self) -> Iterator[tuple[int, int, list[str]]]:
        """Every run of layers, first and last, with the devices that hold the same part of it."""
        for (part, degree), replicas in sorted(self._replicas.items()):
            for rank in range(degree):
                yield self._bounds[part], self._bounds[part + 1], [devices[rank] for devices in replicas]

    def runs(self, first: int, last: int, degree: int) -> list[Run]:
        """The layers of a stage in runs that have the same peers."""
        return [
            Run(self._bounds[part], self._bounds[part + 1], len(self._replicas[part, degree]))
            for part in self._parts(first, last)
        ]

    def _parts(self, first: int, last: int) -> range:
        return range(bisect.bisect_left(self._bounds, first), bisect.bisect_left(self._bounds, last))


class _Member(NamedTuple):
    """What the devices of a replica have in common, in all pipelines of one shape."""

    stage: int
    replica: int
    degree: int
    runs: list[Run]
    memory: Memory
    """With equal shares of the states."""


def shape(pipeline: Pipeline) -> object:
    """Equal for pipelines that differ in nothing but the names of their devices."""
    seen: dict[str, int] = {}
    stages = [
        (
            stage.first,
            stage.last,
            stage.recompute,
            stage.sequence_parallel,
            *[
                (len(replica.devices), replica.share, seen.setdefault(replica.devices[0], len(seen)))
                for replica in stage.replicas
            ],
        )
        for stage in pipeline.stages
    ]
    return tuple(stages), tuple(pipeline.micro_batches), tuple(pipeline.order or ())


def _member(workload: Workload, plan: Plan, pipeline: Pipeline, group: Group, peers: Peers | None) -> _Member:
    degree = len(group.devices)
    stages = [pipeline.stages[number] for number in group.stages]
    dealt = [_dealt(pipeline, number, replica) for number, replica in zip(group.stages, group.replicas, strict=True)]
    runs = _runs(workload, stages, degree, peers)
    held = [_held(workload, stage, each, degree) for stage, each in zip(stages, dealt, strict=True)]
    most = [max(each) for each in dealt]
    work = [(_cut(stage, degree), samples) for stage, samples in zip(stages, most, strict=True)]
    memory = replace(
        _states(workload, plan.zero, runs, degree),
        activations=_most_held(plan, pipeline, group, held),
        recomputed=max(samples * footprint.recomputed_bytes(workload, cut) for cut, samples in work),
        transfer=_transfer_bytes(workload, pipeline, group, most),
        collective=_shard_buffers(workload, plan, runs, degree)
        + max(samples * footprint.gathered_bytes(workload, cut) for cut, samples in work),
        stage=max(zip(map(sum, held), group.stages, strict=True), key=lambda chunk: chunk[0])[1],
    )
    return _Member(group.stages[0], group.replicas[0], degree, runs, memory)


def _held(workload: Workload, stage: Stage, dealt: list[int], degree: int) -> list[float]:
    """Bytes of each micro-batch, taken once per size."""
    known = {samples: held_per_micro_batch(workload, stage, samples, degree) for samples in set(dealt)}
    return [known[samples] for samples in dealt]


def _dealt(pipeline: Pipeline, stage: int, replica: int) -> list[int]:
    """Samples of each micro-batch that a replica of a stage works on."""
    shares = [each.share for each in pipeline.stages[stage].replicas]
    if len(shares) == 1:
        return pipeline.micro_batches
    known = {size: deal_samples(size, shares)[replica] for size in set(pipeline.micro_batches)}
    return [known[size] for size in pipeline.micro_batches]


def _most_held(plan: Plan, pipeline: Pipeline, group: Group, held: list[list[float]]) -> float:
    amounts = {(chunk, number): amount for chunk, each in enumerate(held) for number, amount in enumerate(each)}
    return most_in_flight(pieces(plan, pipeline, group), amounts)


# States: weights, gradients, optimizer


def _runs(workload: Workload, stages: Sequence[Stage], degree: int, peers: Peers | None) -> list[Run]:
    """Everything that the holder of some stages has weights of: their layers, and copies of tied ones elsewhere."""
    runs = [
        run
        for stage in stages
        for run in (peers.runs(stage.first, stage.last, degree) if peers else [Run(stage.first, stage.last, 1)])
    ]
    copies = {
        target: run.peers
        for run in runs
        for tied, target in footprint.ties(workload)
        if run.first <= tied < run.last and not any(stage.first <= target < stage.last for stage in stages)
    }
    return runs + [Run(target, target + 1, count) for target, count in copies.items()]


def _states(workload: Workload, zero: int, runs: Sequence[Run], degree: int, share: float | None = None) -> Memory:
    """Bytes as in :attr:`Workload.state_bytes`; of what is sharded, the share (None: equal ones)."""
    element = workload.element_bytes
    states = 4 * OPTIMIZER_STATES[workload.optimizer] + (4 if element < 4 else 0)
    weights = gradients = optimizer = 0.0
    for run in runs:
        parameters, trainable = footprint.parameters(workload, run.first, run.last, degree)
        part = 1 / run.peers if share is None else share
        weights += element * parameters * (part if zero >= 3 else 1.0)
        gradients += element * trainable * (part if zero >= 2 else 1.0)
        optimizer += states * trainable * (part if zero >= 1 else 1.0)
    return Memory(weights=weights, gradients=gradients, optimizer=optimizer)


def _with_share(workload: Workload, plan: Plan, member: _Member, share: float) -> Memory:
    states = _states(workload, plan.zero, member.runs, member.degree, share)
    return replace(member.memory, weights=states.weights, gradients=states.gradients, optimizer=states.optimizer)


# Buffers


def _transfer_bytes(workload: Workload, pipeline: Pipeline, group: Group, most: Sequence[int]) -> float:
    """Receive buffers of the chunk that needs the most: its inputs from other devices, and gradients of its outputs."""
    if len(pipeline.stages) == 1:
        return 0.0
    edges = workload.stage_edges(tuple(stage.first for stage in pipeline.stages))
    own, largest = set(group.stages), 0.0
    for number, samples in zip(group.stages, most, strict=True):
        received = sum(edge.elements for edge in edges if number in edge[:2] and not own.issuperset(edge[:2]))
        divided = len(group.devices) if pipeline.stages[number].sequence_parallel else 1
        largest = max(largest, BUFFERS * samples * workload.element_bytes * received / divided)
    return largest


def _shard_buffers(workload: Workload, plan: Plan, runs: Sequence[Run], degree: int) -> float:
    """What is whole for a while of sharded states: ZeRO 2 the largest bucket of gradients, ZeRO 3 a layer's weights."""
    sharded = [run for run in runs if run.peers > 1]
    if plan.zero < 2 or not sharded:
        return 0.0
    least = plan.bucket_mib * 2**20
    bucket = max(footprint.largest_bucket(workload, run.first, run.last, degree, least) for run in sharded)
    if plan.zero < 3:
        return bucket
    layers = [number for run in sharded for number in range(run.first, run.last)]
    return bucket + workload.element_bytes * max(
        footprint.parameters(workload, each, each + 1, degree)[0] for each in layers
    )


# Refusal


def _too_much(workload: Workload, plan: Plan, index: int, device: Device, need: Memory) -> Violation:
    """Which device, which stage, which terms, by how much, and what helps."""
    room, path = device.memory_bytes, f"pipelines.{index}.stages.{need.stage}"
    terms = ", ".join(f"{name} {_gib(size)}" for name, size in need.terms().items() if size >= 0.005 * need.total)
    problem = (
        f"needs {_gib(need.total)} GiB on {device.name!r}, which has {_gib(room)} GiB: {terms}; "
        f"{_gib(need.total - room)} GiB too much"
    )
    return path, problem, _mend(workload, plan, index, need, room)


def _gib(size: float) -> str:
    return f"{size / GIB:.4g}"


def _mend(workload: Workload, plan: Plan, index: int, need: Memory, room: float) -> str:
    """What makes the largest term smaller; the states first, where they alone are too much."""
    if need.weights + need.gradients + need.optimizer > room:
        return _mend_of_states(plan, index, need)
    if need.largest_term()[0] == "collective":
        return "a smaller bucket_mib, or smaller micro-batches"
    pipeline = plan.pipelines[index]
    helps = ["give it fewer samples or a max_micro_batch"]
    if len(pipeline.stages) > 1:
        fewer = "accumulate" if len(set(positions(pipeline))) < len(pipeline.stages) else "1f1b"
        helps = ["smaller micro-batches", *([f"schedule {fewer}"] if plan.schedule == "gpipe" else [])]
    recompute = pipeline.stages[need.stage].recompute
    selective = recompute == "none" and any(any(layer.selective_elements) for layer in workload.layers)
    helps += [f"recompute {'selective or ' if selective else ''}full"] if recompute != "full" else []
    return ", or ".join(helps)


def _mend_of_states(plan: Plan, index: int, need: Memory) -> str:
    replicas = plan.pipelines[index].stages[need.stage].replicas
    helps = ["divide its layers over more stages or devices"]
    if plan.zero < 3 and (len(plan.pipelines) > 1 or len(replicas) > 1):  # somebody to share the states with
        helps += [f"zero = {plan.zero + 1}"]
    return ", or ".join(helps)
