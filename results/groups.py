"""Groups: devices of a run that differ in nothing but their names, told once with their number."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from .record import LEDGER_LINES, DeviceLedger, Run

MOST = 24
"""Groups that a table or figure holds; past it, devices whose times differ a little are told by their mean."""
WORDS = re.compile(r"\d+|[^\W\d_]+|[\W_]+")
"""Parts of a name that are compared: numbers, words, and what is between them."""

Key = tuple[Hashable, ...]


class Group(NamedTuple):
    """Devices told as one: the names, and what to call them."""

    label: str
    names: tuple[str, ...]

    def ledger(self, run: Run) -> DeviceLedger:
        """Where the group's mean step went; of samples and memory the largest."""
        ledgers = [run.summary.devices[name] for name in self.names if name in run.summary.devices]
        if len(ledgers) == 1:
            return ledgers[0]
        lines = {line: sum(getattr(each, line) for each in ledgers) / len(ledgers) for line in LEDGER_LINES}
        peaks = [each.peak_memory_bytes for each in ledgers if each.peak_memory_bytes is not None]
        samples = max((each.samples for each in ledgers), default=0)
        return DeviceLedger(**lines, samples=samples, peak_memory_bytes=max(peaks, default=None))


def groups(runs: Sequence[Run], most: int = MOST) -> list[Group]:
    """The devices of some runs of one scenario, in order, those with equal figures and ledgers in one group.

    Where these are more than ``most``, times are left out of the comparison; where there are still more, the last group
    holds all others.
    """
    like = _likeness(runs)
    found = _by({name: (key, *(_times(run, name) for run in runs)) for name, key in like.items()})
    if len(found) > most:
        found = _by(like)
    if len(found) > most:
        others = tuple(name for each in found[most - 1 :] for name in each)
        return [*(Group(label(each), each) for each in found[: most - 1]), Group(f"{len(others)} others", others)]
    return [Group(label(each), each) for each in found]


def roles(run: Run) -> list[Group]:
    """The devices of a run by kind, layers and samples, whatever their times; called after the first of each."""
    found = _by(_likeness([run]))
    return [Group(each[0] if len(each) == 1 else f"{each[0]} and {len(each) - 1} like it", each) for each in found]


def sample_groups(run: Run) -> list[tuple[Group, int]]:
    """The devices of a run, those of one kind with as many samples in one group; and these samples."""
    kinds, ledgers = device_kinds(run), run.summary.devices
    found = _by({name: (kinds.get(name), ledger.samples) for name, ledger in ledgers.items()})
    return [(Group(label(names), names), ledgers[names[0]].samples) for names in found]


def label(names: Sequence[str]) -> str:
    """A name, or how many there are and their common pattern: ``16 x node-*/a100-*``."""
    if len(names) == 1:
        return names[0]
    parts = [WORDS.findall(name) for name in names]
    if len(set(map(len, parts))) == 1:
        common = "".join(column[0] if len(set(column)) == 1 else "*" for column in zip(*parts, strict=True))
        if any(each.isalnum() for each in common):
            return f"{len(names)} x {common}"
    return f"{len(names)} x {names[0]}, ..."


def device_kinds(run: Run) -> dict[str, Hashable]:
    """Per device, its figures as the run's scenario gives them: equal for devices of one kind."""
    cluster = run.manifest.scenario.get("cluster")
    nodes = cluster.get("nodes") if isinstance(cluster, Mapping) else None
    devices = [device for node in nodes or () for device in node.get("devices", ())]
    return {str(device.get("name")): _figures(device) for device in devices}


def held_layers(plan: Mapping[str, Any]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Per device of a plan's document, the layers ``[first, last)`` of its stages."""
    found: dict[str, list[tuple[int, int]]] = {}
    for stage in (stage for pipeline in plan.get("pipelines", ()) for stage in pipeline["stages"]):
        for name in (name for replica in stage["replicas"] for name in replica["devices"]):
            found.setdefault(name, []).append((stage["first"], stage["last"]))
    return {name: tuple(each) for name, each in found.items()}


def _likeness(runs: Sequence[Run]) -> dict[str, Key]:
    """Per device, its kind, and the layers and samples that it has in each run."""
    kinds, layers = device_kinds(runs[0]), [held_layers(run.plan) for run in runs]
    return {
        name: (kinds.get(name), *(each.get(name, ()) for each in layers), *(_samples(run, name) for run in runs))
        for name in runs[0].summary.devices
    }


def _figures(device: Mapping[str, Any]) -> Hashable:
    plain = tuple((key, value) for key, value in device.items() if key != "name" and not isinstance(value, dict | list))
    return plain, tuple(sorted((device.get("peak_tflops") or {}).items()))


def _samples(run: Run, name: str) -> int:
    ledger = run.summary.devices.get(name)
    return ledger.samples if ledger else 0


def _times(run: Run, name: str) -> Key:
    ledger = run.summary.devices.get(name)
    return (*(getattr(ledger, line) for line in LEDGER_LINES), ledger.peak_memory_bytes) if ledger else ()


def _by(keys: Mapping[str, Key]) -> list[tuple[str, ...]]:
    """Names of equal keys together, in the order of the first of each."""
    found: dict[Key, list[str]] = {}
    for name, key in keys.items():
        found.setdefault(key, []).append(name)
    return [tuple(each) for each in found.values()]
