"""List schedules: heuristics that place a graph's tasks on unequal devices, one by one, within their memory."""

from __future__ import annotations

from collections.abc import Sequence

from .tasks import NoRoomError, Tasks, Timetable


def earliest_finish(tasks: Tasks) -> Timetable:
    """HEFT (Topcuoglu, Hariri, Wu 2002): by upward rank, each task where it ends first, in gaps too.

    Beside the paper: a device without room for a task is no choice for it.

    Raises:
        NoRoomError: a task fits nowhere any more.
    """
    table = Timetable(tasks)
    for task in sorted(range(tasks.count), key=lambda each: (-tasks.upward_ranks[each], each)):
        starts = {device: table.between_s(task, device) for device in table.fitting(task)}
        device = min(starts, key=lambda each: (starts[each] + tasks.seconds[task][each], each))
        table.put(task, device, starts[device])
    return table


def earliest_start(tasks: Tasks) -> Timetable:
    """m-ETF (Jeon et al. 2020, Baechi; ETF: Hwang et al. 1989): of all tasks that can go, the one that begins first.

    Of all pairs of a task whose inputs are placed and a device that has room for it, the one with the earliest start;
    ties go to the earlier task, then to the earlier device.

    Raises:
        NoRoomError: a task fits nowhere any more.
    """
    table, missing = Timetable(tasks), [len(set(inputs)) for inputs in tasks.inputs]
    ready = {task for task in range(tasks.count) if not missing[task]}
    while ready:
        start, task, device = min(
            (table.after_all_s(task, device), task, device) for task in ready for device in table.fitting(task)
        )
        table.put(task, device, start)
        ready.remove(task)
        for reader in set(tasks.readers[task]):
            missing[reader] -= 1
            if not missing[reader]:
                ready.add(reader)
    return table


def topological_fill(tasks: Tasks, *, balanced: bool = True) -> Timetable:
    """m-TOPO (Jeon et al. 2020, Baechi): in topological order, device after device, each filled up to a cap.

    Args:
        tasks: what to place.
        balanced: whether the cap is an equal share of all bytes and the largest task's beside it (and no more than the
            device's room); else the device's room alone.

    Raises:
        NoRoomError: a task comes after the last device is full.
    """
    cap = sum(tasks.sizes) / len(tasks.devices) + max(tasks.sizes) if balanced else float("inf")
    table, device, held = Timetable(tasks), 0, 0.0
    for task in range(tasks.count):
        while held + tasks.sizes[task] > cap or not table.fits(task, device):
            device, held = device + 1, 0.0
            if device == len(tasks.devices):
                raise NoRoomError(task)
        table.put(task, device, table.after_all_s(task, device))
        held += tasks.sizes[task]
    return table


def in_order(tasks: Tasks, devices: Sequence[int], sequence: Sequence[int]) -> Timetable:
    """The timetable of tasks whose devices and order are given: each begins as soon as it can.

    Args:
        tasks: what is placed.
        devices: per task.
        sequence: all tasks, each after those that feed it.
    """
    table = Timetable(tasks)
    for task in sequence:
        table.put(task, devices[task], table.after_all_s(task, devices[task]))
    return table
