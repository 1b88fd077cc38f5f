"""Causes: what a part of the critical path is blamed on, under a name that people know, and how to halve it.

Devices that are alike stand in for each other: when one of them gets faster, the next one binds. So the cause of a part
is the whole group of them, and each group has narrower ones within, down to the single device or pair of links.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..results.groups import label
from .critical import Part
from .network import Transfer, network_of
from .plan import Plan
from .program import Program, Worker
from .relief import Relief, Unit
from .spec import Scenario

Kind = Literal["device", "collective", "optimizer", "link", "latency", "communication", "loader"]
ALIKE = 0.95
"""Devices of one kind with at least so much of the longest work are alike."""
SLOWED = 1.001
"""A transfer that takes so many times as long as alone shared its links."""
SAME = 1 + 1e-9
FEW = 3
"""Names that are told one by one."""
WORK = "forward and backward"


@dataclass(frozen=True, slots=True)
class Cause:
    """What takes time, and what takes half of it away."""

    name: str
    kind: Kind
    relief: Relief
    devices: int = 0
    """How many do the work."""


class Causes:
    """The causes of delay in a program."""

    def __init__(self, scenario: Scenario, plan: Plan, program: Program) -> None:
        self.cluster = scenario.cluster
        self.program = program
        self.resources = network_of(scenario.cluster).names
        self.several_stages = any(len(pipeline.stages) > 1 for pipeline in plan.pipelines)
        self.images: dict[str, list[str]] = {}
        for name, stand_in in program.stands_for.items():
            self.images.setdefault(stand_in, []).append(name)
        loads = {
            (number, member): load
            for number, worker in enumerate(program.workers)
            for member, load in enumerate(_loads(worker))
        }
        self.leads = [max(self._members(number), key=loads.__getitem__) for number in range(len(program.workers))]
        """Of each worker the member with the most work."""
        self.alike = self._alike(loads)
        self.roles = {unit: self._role(unit) for unit in loads}
        self.known: dict[Hashable, tuple[Cause, ...]] = {}
        self.places: dict[Hashable, str] = {}
        self.called: dict[str, frozenset[str]] = {}

    def of(self, part: Part) -> tuple[Cause, ...]:
        """The cause of a part, and those within it, ever narrower."""
        key = self._key(part)
        if key not in self.known:
            found = {cause.name: cause for cause in reversed(list(self._causes(part, slowed=bool(key[-1]))))}
            self.known[key] = tuple(found.values())[::-1]
        return self.known[key]

    def place(self, part: Part) -> str:
        """The devices whose work a part is, or that it keeps waiting."""
        member = part.member if part.kind in ("compute", "optimizer") else -1
        key = part.worker, member
        if key not in self.places:
            self.places[key] = self._called([(part.worker, member)] if member >= 0 else self._members(part.worker))
        return self.places[key]

    def everything(self) -> Cause:
        """The work of all devices, where they are in balance."""
        count = len(self._names(self.roles))
        return Cause(f"all {count} devices: {WORK}", "device", Relief(compute=frozenset(self.roles)), count)

    def whole(self, what: str) -> Cause:
        """All transfers for one purpose."""
        return Cause(what, "communication", Relief(transfers=frozenset({what})))

    def _key(self, part: Part) -> tuple[Hashable, ...]:
        """Parts of equal keys have the same causes."""
        if part.transfer is None:
            return part.kind, part.worker, part.member, part.loader, False
        slowed = part.seconds > SLOWED * (part.transfer.alone_s - part.transfer.latency_s)
        uses = part.transfer.uses if part.kind == "volume" else ()
        return part.kind, part.what, uses, part.kind == "volume" and slowed

    def _causes(self, part: Part, *, slowed: bool) -> Iterator[Cause]:
        unit = (part.worker, part.member)
        if part.kind == "compute":
            for units in self._narrowing(unit):
                count = len(self._names(units))
                yield Cause(f"{self._called(units)}: {WORK}", "device", Relief(compute=units), count)
        elif part.kind == "optimizer":
            for units in self._narrowing(unit):
                yield Cause(f"{self._called(units)}: optimizer", "optimizer", Relief(optimizer=units))
        elif part.kind == "tensor":
            for units in self._narrowing(self.leads[part.worker]):
                groups = frozenset(number for number, lead in enumerate(self.leads) if lead in units)
                whole = [each for number in groups for each in self._members(number)]
                name = f"{self._called(whole)}: tensor-parallel collectives"
                yield Cause(name, "collective", Relief(tensor=groups))
        elif part.kind == "loading":
            yield self._loading(part.loader)
        elif part.kind == "volume" and part.transfer is not None and part.transfer.uses:
            for links in self._limits(part.transfer, slowed=slowed):
                yield Cause(f"link {self._links(links)}", "link", Relief(links=links))
        else:
            yield Cause(f"latency of {part.what}", "latency", Relief(latencies=frozenset({part.what})))

    def _alike(self, loads: Mapping[Unit, float]) -> dict[Unit, frozenset[Unit]]:
        """Devices of one kind with nearly as much work in a step, from the one with the most on."""
        by_kind: dict[int, list[tuple[float, Unit]]] = {}
        for (number, member), load in loads.items():
            kind = self.cluster.kinds[self.program.workers[number].members[member][0]]
            by_kind.setdefault(kind, []).append((load, (number, member)))
        found: dict[Unit, frozenset[Unit]] = {}
        for entries in by_kind.values():
            left = sorted(entries, reverse=True)
            while left:
                group = [unit for load, unit in left if load >= ALIKE * left[0][0]]
                found.update(dict.fromkeys(group, frozenset(group)))
                left = left[len(group) :]
        return found

    def _narrowing(self, unit: Unit) -> list[frozenset[Unit]]:
        """All that are like a device, those of them that do the very same work, and the device by itself."""
        alike, role = self.alike[unit], self.roles[unit]
        same = frozenset(each for each in alike if self.roles[each] == role)
        return list(dict.fromkeys((alike, same, frozenset({unit}))))

    def _role(self, unit: Unit) -> Hashable:
        worker = self.program.workers[unit[0]]
        times = tuple(
            tuple(tuple(job.compute_s[unit[1]] for job in chunk) for chunk in direction) for direction in worker.jobs
        )
        return worker.stages, worker.classes, times

    def _members(self, number: int) -> list[Unit]:
        return [(number, member) for member in range(len(self.program.workers[number].members))]

    def _names(self, units: Iterable[Unit]) -> list[str]:
        own = [name for number, member in units for name in self.program.workers[number].members[member]]
        return [each for name in own for each in (name, *self.images.get(name, ()))]

    def _called(self, units: Iterable[Unit]) -> str:
        """Devices by their names, with the stages that they hold where there are several."""
        units = list(units)
        stages = sorted({stage for number, _ in units for stage in self.program.workers[number].stages})
        return self._named(self._names(units), f" ({_stages(stages)})" if self.several_stages else "")

    def _named(self, names: Iterable[str], rest: str) -> str:
        """Names in short and what follows them; in another way if that means others already."""
        own = frozenset(names)
        short = called(own) + rest
        if self.called.setdefault(short, own) != own:
            short = f"{len(own)} x {min(own, key=_natural)}, ...{rest}"
        return short

    def _loading(self, loader: int) -> Cause:
        """All input pipelines that are as slow and have as much to load."""
        loaders = self.program.loaders
        signs = [(each.samples_per_s, sum(samples for _, _, samples in each.queue)) for each in loaders]
        same = [number for number, sign in enumerate(signs) if sign == signs[loader]]
        workers = {worker for number in same for worker, _, _ in loaders[number].queue}
        names = self._names((number, 0) for number in workers)
        nodes = {self.cluster.nodes[self.cluster.node_of[name]].name for name in names}
        return Cause(f"input pipeline of {self._named(nodes, '')}", "loader", Relief(loaders=frozenset(same)))

    def _limits(self, transfer: Transfer, *, slowed: bool) -> list[frozenset[int]]:
        """The resources that limit a transfer and all that are like them; then these alone."""
        if slowed:  # by others: by those on the link that has the most to carry
            own = _largest({resource: self._carried[resource] for resource, _ in transfer.uses})
        else:
            own = self._tightest(transfer)
        return list(dict.fromkeys((frozenset().union(*(self._akin[resource] for resource in own)), own)))

    def _tightest(self, transfer: Transfer) -> frozenset[int]:
        """The resources that limit a transfer that is alone."""
        return _largest({resource: weight / self.program.capacities[resource] for resource, weight in transfer.uses})

    @cached_property
    def _akin(self) -> dict[int, frozenset[int]]:
        """Per resource those that are like it, and those that limit any transfer together with one of them."""
        signs: dict[tuple[str, float], list[int]] = {}
        for resource in self._carried:
            signs.setdefault((self._label(resource)[1], self.program.capacities[resource]), []).append(resource)
        akin = {resource: frozenset(like) for like in signs.values() for resource in like}
        for transfer in {transfer.uses: transfer for transfer, _ in _transfers(self.program)}.values():
            together = {akin[resource] for resource in self._tightest(transfer)}
            if len(together) > 1:
                both = frozenset().union(*together)
                akin.update(dict.fromkeys(both, both))
        return akin

    @cached_property
    def _carried(self) -> dict[int, float]:
        """Per resource in use, the seconds of a step that it takes to carry everything."""
        found: dict[int, float] = {}
        for transfer, times in _transfers(self.program):
            for resource, weight in transfer.uses:
                seconds = times * weight * transfer.volume_bytes / self.program.capacities[resource]
                found[resource] = found.get(resource, 0.0) + seconds
        return found

    def _label(self, resource: int) -> tuple[str, str]:
        """Whose a resource is, and what, whichever its direction and number."""
        owner, _, what = self.resources[resource].rpartition(": ")
        return owner, re.sub(r"^(nic) \d+", r"\1", re.sub(r" (out|in|up|down)$", "", what))

    def _links(self, links: frozenset[int]) -> str:
        """Links by whose they are; single ones with their direction."""
        if len(links) == 1 or len({self._label(each)[0] for each in links}) == len(links) == 2:
            exact = {self.resources[each] for each in links}
            if not self.images:
                return " and ".join(sorted(exact, key=_natural))
        owners: dict[str, set[str]] = {}
        for resource in links:
            owner, what = self._label(resource)
            owners.setdefault(what, set()).update((owner, *self._image_owners(owner)))
        return ", ".join(self._named(owners[what], f": {what}") for what in sorted(owners))

    def _image_owners(self, owner: str) -> set[str]:
        """The devices or machines that a device or machine of a folded pipeline stands for."""
        if owner in self.images:
            return set(self.images[owner])
        node = next((node for node in self.cluster.nodes if node.name == owner), None) if self.images else None
        names = [name for device in node.devices for name in self.images.get(device.name, ())] if node else []
        return {self.cluster.nodes[self.cluster.node_of[name]].name for name in names}


def called(names: Iterable[str]) -> str:
    """A few names as they are; of more, how many there are and what they have in common."""
    ordered = sorted(set(names), key=_natural)
    if len(ordered) <= FEW:
        return " and ".join(filter(None, (", ".join(ordered[:-1]), ordered[-1])))
    return label(ordered)


def _largest(loads: Mapping[int, float]) -> frozenset[int]:
    """The resources of the largest load, or of one that is no less but for rounding."""
    most = max(loads.values(), default=0.0)
    return frozenset(resource for resource, load in loads.items() if load * SAME >= most)


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers within names in the order of their values."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _stages(stages: Sequence[int]) -> str:
    """Numbers of stages in order, runs of them in short."""
    runs: list[list[int]] = []
    for stage in stages:
        if runs and stage == runs[-1][1] + 1:
            runs[-1][1] = stage
        else:
            runs.append([stage, stage])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"stage{'s' * (len(stages) > 1)} {text}"


def _loads(worker: Worker) -> list[float]:
    """Seconds that each member computes in a step."""
    loads = [0.0] * len(worker.members)
    for piece in worker.pieces:
        for member, seconds in enumerate(worker.job(piece).compute_s):
            loads[member] += seconds
    return loads


def _transfers(program: Program) -> Iterator[tuple[Transfer, float]]:
    """All transfers of a step, and how often each is made."""
    for worker in program.workers:
        for piece in worker.pieces:
            for send in worker.job(piece).sends:
                yield send.transfer, 1.0
            if worker.gathers:
                gather = worker.gathers[piece.chunk]
                yield gather.backward if piece.backward else gather.forward, 1.0 / gather.peers
    for sync in program.syncs:
        yield sync.transfer, 1.0 / sync.every
