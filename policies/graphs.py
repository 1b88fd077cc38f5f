"""Graphs: a view's layers as tasks for its devices, and a timetable of them as a plan.

A layer's seconds are those of its forward and its backward pass and its part of the update, over all micro-batches of a
step; what it hands on is counted both ways, as the gradient comes back. The backward pass goes the forward pass's way
in the other direction, on the same devices: where it takes so many times as long on all layers, and transfers alike,
its timetable is the mirror image of the forward pass's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from ..sim import footprint, memory
from ..sim.network import network_of
from ..sim.plan import Infeasible, Pipeline, Plan, Replica, Stage, micro_batches
from ..sim.schedule import Kind
from ..sim.times import layer_times
from ..sim.view import View
from ..sim.workload import Workload, at
from ._base import canonical
from .tasks import NoRoomError, Tasks, Timetable

MOST_PAIRED = 32
"""Devices over which transfers are averaged: those of a larger cluster are like these."""
TRIES, LEAST_TRIES = 64, 4
"""Timetables before we give up, each with less room on the devices whose memory the plan before exceeded; several
schedulers share them, and each has some."""
KINDS: tuple[Kind, ...] = ("gpipe", "accumulate")
"""Schedules in which devices may recur: the faster one first; the other holds one micro-batch at a time."""
Scheduler = Callable[[Tasks], Timetable]


class Placement(NamedTuple):
    """A timetable of the view's layers, and the plan that it comes to."""

    table: Timetable
    plan: Plan


def placed(view: View, scheduler: Scheduler) -> Plan:
    """The plan of a timetable of the view's layers, within the memory of its devices.

    All micro-batches run through it as a pipeline; where they do not fit together, one after the other.

    Raises:
        Infeasible: a layer fits nowhere.
    """
    return placements(view, [scheduler])[0].plan


def placements(
    view: View,
    schedulers: Sequence[Scheduler],
    sizes: list[int] | None = None,
    kinds: Sequence[Kind] = KINDS,
) -> list[Placement]:
    """The same of several schedulers, those left out that find no place for a layer.

    Args:
        view: what is placed, on which devices.
        schedulers: each is asked for a timetable.
        sizes: of the micro-batches; as the workload's limit cuts the batch by default.
        kinds: schedules; each is tried only where no scheduler has a place for all layers with the one before.

    Raises:
        Infeasible: no scheduler finds a place for all layers; the first one's reason.
    """
    view, refusals = canonical(view), list[Infeasible]()
    sizes = sizes or micro_batches(view.global_batch, view.workload.max_micro_batch)
    tries = max(LEAST_TRIES, TRIES // len(schedulers))
    for kind in kinds if len(sizes) > 1 else kinds[:1]:
        tasks, found = tasks_of(view, kind, sizes), list[Placement]()
        refusals.clear()
        for scheduler in schedulers:
            try:
                found.append(_within_memory(view, scheduler, tasks, kind, sizes, tries=tries))
            except Infeasible as error:
                refusals.append(error)
        if found:
            return found
    raise refusals[0]


def _within_memory(
    view: View, scheduler: Scheduler, tasks: Tasks, kind: Kind, sizes: list[int], *, tries: int
) -> Placement:
    """A layer alone may take less than beside others (receive buffers): the closed form judges what comes out."""
    for _ in range(tries):
        try:
            table = scheduler(tasks)
        except NoRoomError as error:
            raise _no_room(view, error.task) from error
        plan = plan_of(view, table, kind, sizes)
        peaks, room = memory.peak(view.workload, plan), list(tasks.room)
        for number, device in enumerate(view.devices):
            excess = peaks[device.name].total - device.memory_bytes if device.name in peaks else 0.0
            if excess > 0:
                room[number] = tasks.room[number] - table.left[number] - excess
        if room == list(tasks.room):
            return Placement(table, plan)
        tasks = replace(tasks, room=room)
    raise Infeasible("cluster", f"its memory was exceeded by {tries} placements in turn", "use a smaller batch")


def _no_room(view: View, task: int) -> Infeasible:
    name = view.workload.layers[task].name
    problem = f"its layer {name!r} fits on no device beside the layers that were placed before it"
    return Infeasible("workload", problem, "use a smaller batch, max_micro_batch, more memory, or another policy")


def tasks_of(view: View, kind: Kind, sizes: Sequence[int], *, updates: bool = True) -> Tasks:
    """The layers as tasks.

    Args:
        view: its devices, in their order, are numbered from 0.
        kind: schedule, on which the activations depend that are held at once.
        sizes: of the micro-batches.
        updates: whether a layer's seconds hold its part of the update.
    """
    workload, network = view.workload, network_of(view.cluster)
    names = [device.name for device in view.devices]
    by_kind = {
        number: _seconds(view, name, sizes, updates=updates)
        for name, number in view.cluster.kinds.items()
        if name in set(names)
    }
    columns = [by_kind[view.cluster.kinds[name]] for name in names]
    tokens, counts = workload.sequence_length, Counter(sizes)
    bytes_of = [at(layer.output_elements, tokens) * workload.element_bytes for layer in workload.layers]

    @cache
    def between(sent: float, here: int, there: int) -> float:
        """Forward the output, backward its gradient, in every micro-batch."""
        ways = ((names[here], names[there]), (names[there], names[here]))
        return sum(
            count * network.point_to_point(*way, size * sent).alone_s for size, count in counts.items() for way in ways
        )

    @cache
    def mean(sent: float) -> float:
        few = range(min(len(names), MOST_PAIRED))
        each = [between(sent, here, there) for here in few for there in few if here < there]
        return sum(each) / len(each) if each else 0.0

    return Tasks(
        seconds=[list(row) for row in zip(*columns, strict=True)],
        inputs=footprint.sources(workload),
        transfer_s=lambda source, _, here, there: between(bytes_of[source], here, there),
        mean_transfer_s=lambda source, _: mean(bytes_of[source]),
        sizes=_bytes(workload, kind, sizes),
        room=[device.memory_bytes for device in view.devices],
        pieces=len(sizes) if kind == "gpipe" else 1,
    )


def _seconds(view: View, name: str, sizes: Sequence[int], *, updates: bool) -> list[float]:
    """Per layer, seconds of a step on a device."""
    device, workload = view.cluster.by_name[name], view.workload
    times = {size: layer_times(device, workload, size) for size in set(sizes)}
    passes = sum(sizes.count(size) * (each.forward_s + each.backward_s) for size, each in times.items())
    found: list[float] = (passes + times[sizes[0]].optimizer_s * updates).tolist()
    return found


def _bytes(workload: Workload, kind: Kind, sizes: Sequence[int]) -> list[float]:
    """Per layer, what it takes of a device's memory, but for the receive buffers."""
    apart = [
        Stage(first=number, last=number + 1, replicas=[Replica(devices=[str(number)])])
        for number in range(len(workload.layers))
    ]
    plan = Plan(pipelines=[Pipeline(stages=apart, micro_batches=list(sizes))], schedule=kind)
    peaks = memory.peak(workload, plan)
    return [peaks[str(number)].total - peaks[str(number)].transfer for number in range(len(apart))]


def plan_of(view: View, table: Timetable, kind: Kind, sizes: Sequence[int]) -> Plan:
    """One pipeline, whose devices take their stages in the order of a timetable."""
    runs = list(_runs(table))
    stages = [
        Stage(first=first, last=last, replicas=[Replica(devices=[view.devices[table.device[first]].name])])
        for first, last in runs
    ]
    moments = {task: moment for moment, task in enumerate(table.sequence)}
    order: list[int] | None = sorted(range(len(runs)), key=lambda number: moments[runs[number][0]])
    if order == list(range(len(runs))):
        order = None
    pipeline = Pipeline(stages=stages, micro_batches=list(sizes), order=order)
    # A pipeline of one stage has no schedule: left at the plan's default, it equals other policies' plans.
    return Plan(pipelines=[pipeline], schedule=kind if len(stages) > 1 else "gpipe")


def _runs(table: Timetable) -> Iterator[tuple[int, int]]:
    """Layers that are a stage, so that nothing waits longer, and nothing is sent later, than layer by layer."""
    first = 0
    for layer in range(1, table.tasks.count + 1):
        if layer == table.tasks.count or not _joins(table, first, layer):
            yield first, layer
            first = layer


def _joins(table: Timetable, first: int, layer: int) -> bool:
    """Whether a layer can go on with the stage of the layers before it.

    Its device must take it next, what it reads from elsewhere must be there already for the stage's first layer, and
    nobody elsewhere may wait for the layer before it.
    """
    device, tasks = table.device, table.tasks
    here = device[layer]
    lane = [slot.task for slot in table.lanes[here]]
    if device[layer - 1] != here or lane.index(layer) != lane.index(layer - 1) + 1:
        return False
    from_elsewhere = {source for source in tasks.inputs[layer] if device[source] != here}
    there = {source for source in tasks.inputs[first] if device[source] != here}
    return from_elsewhere <= there and all(device[reader] == here for reader in tasks.readers[layer - 1])
