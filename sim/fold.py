"""Fold: which pipelines of a plan are images of each other, so that one stands for all of them.

Two pipelines are images when they do the same work on equal devices, and meet the same company on every link that
several of them use. Then nothing tells them apart, and without noise all their times are equal. The test refines
classes of pipelines by the company that their machines keep, until none splits (the coarsest equitable partition of
pipelines and machines): then flows of images get equal rates from max-min sharing, too. One stands for the others where
the company on its links is there with it, or represented there (:func:`together`), and collectives are :func:`even`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .device import Cluster, Link
from .network import Network, Transfer
from .plan import Pipeline, Plan
from .program import Gather, Program
from .topology import Ints

Copies = Sequence[Sequence[str]]
"""The devices of a place, and those of each place that it stands for."""


def images(plan: Plan, cluster: Cluster, network: Network) -> list[list[int]]:
    """Numbers of the plan's pipelines, those that are images of each other together, in order of their first."""
    names = [pipeline.devices for pipeline in plan.pipelines]
    devices = [np.array(network.numbers(each)) for each in names]
    signs = _laid_out(_works(plan, names), devices, cluster, network)
    while crowded(cluster) and len(set(signs)) < len(signs):
        finer = _refined(signs, devices, network)
        if len(set(finer)) == len(set(signs)):
            break
        signs = finer
    classes: dict[int, list[int]] = {}
    for number, sign in enumerate(signs):
        classes.setdefault(sign, []).append(number)
    return list(classes.values())


def crowded(cluster: Cluster) -> bool:
    """Whether any link can be used by several devices: a bus, an adapter of several devices, an uplink."""
    medium = cluster.network is not None and cluster.network.shared
    return (
        medium
        or bool(cluster.switches)
        or any(node.link.shared or len(node.devices) > node.nics for node in cluster.nodes)
    )


def even(program: Program, copies: Sequence[Copies], network: Network) -> bool:
    """Whether every collective loads the links of a pipeline's images as it loads its own, where others use them too.

    A tree has a root, a ring a last machine: where that makes the images differ, none can stand for another. A link
    that a single collective has to itself makes nobody wait, whoever's it is.
    """
    loads, crossings = _loads(program, len(network.capacities))
    shared = np.where(crossings > 1, loads, 0)
    sent = _crossed(_messages(program), len(loads))
    for links in _links(copies, network):
        here = np.where(sent[links[0]], loads[links], shared[links])
        if np.any(here != here[0]):
            return False
    return True


def together(program: Program, copies: Sequence[Copies], network: Network) -> bool:
    """Whether whoever meets those who stand for others on a link has who stands for it on that very link, too.

    An image may share a link with what does not share one with its pipeline: with another stage of it, where the two
    cross, or with a pipeline whose company is elsewhere. Then the company on a link is not simulated on it.
    """
    of = [worker.pipeline for worker in program.workers]
    # Several workers of one pipeline: parameters that its stages share, summed in each pipeline by itself.
    tied = [each.transfer for each in program.syncs if len(each.workers) > 1 == len({of[one] for one in each.workers})]
    on = _crossed([*_messages(program), *tied], len(network.capacities) + 1)
    return not any(np.any(on[links[0]] & on[links] & (links != links[0])) for links in _links(copies, network))


def on_links_of(program: Program, copies: Sequence[Copies], network: Network) -> Program:
    """The same program, its collectives only on the links of those who stand for others, and on their narrowest."""
    names = [name for devices in copies for name in devices[0]]
    own = set(network.topology.links[network.numbers(names)].ravel().tolist())
    capacities = network.capacities

    def cut(transfer: Transfer) -> Transfer:
        if not transfer.uses:
            return transfer
        narrowest = max(transfer.uses, key=lambda use: use[1] / capacities[use[0]])
        return replace(transfer, uses=tuple([use for use in transfer.uses if use[0] in own or use is narrowest]))

    def cut_both(gather: Gather) -> Gather:
        return replace(gather, forward=cut(gather.forward), backward=cut(gather.backward))

    return replace(
        program,
        syncs=tuple(replace(sync, transfer=cut(sync.transfer)) for sync in program.syncs),
        workers=tuple(
            replace(worker, gathers=tuple(cut_both(gather) for gather in worker.gathers)) if worker.gathers else worker
            for worker in program.workers
        ),
    )


def meeting(transfer: Transfer, copies: Sequence[Copies], network: Network) -> list[int]:
    """Which images of a transfer between places may have a link in common with it; the first one is the transfer."""
    on = np.zeros(len(network.capacities) + 1, bool)  # the last one: no link
    on[[resource for resource, _ in transfer.uses]] = True
    near = np.zeros(len(copies[0]), bool)
    for devices in copies:
        names = [name for copy in devices for name in copy]
        near |= on[network.topology.links[network.numbers(names)]].reshape(len(devices), -1).any(axis=1)
    return (1 + np.flatnonzero(near[1:])).tolist()


def _links(copies: Sequence[Copies], network: Network) -> Iterable[Ints]:
    """Per place, the links of its devices and, a row each, those of its images; -1 for no link."""
    for devices in copies:
        names = [name for copy in devices for name in copy]
        yield network.topology.links[network.numbers(names)].reshape(len(devices), -1)


def _messages(program: Program) -> list[Transfer]:
    """What the pieces of all workers send."""
    return [send.transfer for worker in program.workers for job in worker.every_job for send in job.sends]


def _crossed(transfers: Iterable[Transfer], resources: int) -> NDArray[np.bool_]:
    """Per resource, whether any of these crosses it; the last one, no link, is crossed by none."""
    on = np.zeros(resources, bool)
    on[[resource for transfer in transfers for resource, _ in transfer.uses]] = True
    return on


def _loads(program: Program, resources: int) -> tuple[Ints, Ints]:
    """Per resource a number for which collectives cross it how often, and how many do; one more for no resource."""
    gathers = {gather.group: gather for worker in program.workers for gather in worker.gathers}
    transfers = [sync.transfer for sync in program.syncs]
    transfers += [each for gather in gathers.values() for each in (gather.forward, gather.backward)]
    loads, crossings = np.zeros(resources + 1, np.int64), np.zeros(resources + 1, np.int64)
    for transfer in transfers:
        if transfer.uses:
            crossed = np.array([resource for resource, _ in transfer.uses])
            weights = np.unique([weight for _, weight in transfer.uses], return_inverse=True)[1]
            crossings[crossed] += 1
            pairs = loads[crossed] * len(crossed) + weights
            loads[crossed] = 1 + int(np.max(loads)) + np.unique(pairs, return_inverse=True)[1]
    return loads, crossings


def _numbered(values: Iterable[Hashable]) -> list[int]:
    """A number per value, the same for equal values."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def _machines(cluster: Cluster, network: Network) -> list[int]:
    """Per machine, a number that is the same for machines that differ in nothing but names and devices."""
    uplinks = {switch.name: switch.uplink for switch in cluster.switches}
    figures: dict[int, Hashable] = {}

    def speed(link: Link | None) -> Hashable:
        if link is None:
            return None
        if id(link) not in figures:
            figures[id(link)] = link.latency_s, link.bandwidth, link.reverse_bandwidth, link.shared
        return figures[id(link)]

    return _numbered(
        (
            *(len(node.devices), node.nics, speed(node.link), speed(node.network), node.loader_samples_per_s),
            tuple([speed(uplinks[name]) for name in way]),
        )
        for node, way in zip(cluster.nodes, network.topology.ways, strict=True)
    )


def _works(plan: Plan, names: Sequence[Sequence[str]]) -> list[int]:
    """Per pipeline a number for what it does, whoever does it."""
    shares = plan.state_shares
    sizes: dict[tuple[int, int, int], list[list[int]]] = {}
    works: list[Hashable] = []
    for pipeline, own in zip(plan.pipelines, names, strict=True):
        batches = pipeline.micro_batches
        ends = (len(batches), batches[0], batches[-1])
        known = sizes.setdefault(ends, [])  # lists are compared faster than tuples of them are made and hashed
        if batches not in known:
            known.append(batches)
        held = None if shares is None else tuple([shares.get(name) for name in own])
        works.append((_stages(pipeline, own), tuple(pipeline.order or ()), ends, known.index(batches), held))
    return _numbered(works)


def _stages(pipeline: Pipeline, names: Sequence[str]) -> Hashable:
    """The stages, and which of the pipeline's devices are on each."""
    stages = tuple(
        [
            (
                stage.first,
                stage.last,
                stage.recompute,
                stage.sequence_parallel,
                tuple([(each.share, len(each.devices)) for each in stage.replicas]),
            )
            for stage in pipeline.stages
        ]
    )
    every = [name for stage in pipeline.stages for each in stage.replicas for name in each.devices]
    if len(every) == len(names):  # each device once: the sizes tell all
        return stages
    places = {name: place for place, name in enumerate(names)}
    return stages, tuple([places[name] for name in every])


def _laid_out(works: Sequence[int], devices: Sequence[Ints], cluster: Cluster, network: Network) -> list[int]:
    """Per pipeline a number for its work, the kinds of its devices, and how these lie to each other."""
    kinds = np.fromiter(cluster.kinds.values(), np.int64)
    machine, nic = network.topology.table[:, 0], network.topology.table[:, 5]
    alike = np.array(_machines(cluster, network))[machine]
    adapter = machine * (int(np.max(nic)) + 1) + nic
    switches = network.topology.switches[machine]
    of_work: dict[int, list[int]] = {}
    for number, work in enumerate(works):
        of_work.setdefault(work, []).append(number)
    signs: list[Hashable] = list(works)
    for work, numbers in of_work.items():
        if len(numbers) == 1:
            continue
        every = np.stack([devices[number] for number in numbers])
        above = switches[every].reshape(len(numbers), -1)
        columns = [kinds[every], alike[every], _firsts(machine[every]), _firsts(adapter[every]), _firsts(above)]
        rows = np.concatenate(columns, axis=1)
        for number, row in zip(numbers, rows, strict=True):
            signs[number] = work, row.tobytes()
    return _numbered(signs)


def _firsts(values: Ints) -> Ints:
    """Of each number in a row, where in the row it first stands; -1 where it is negative."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    begins = np.zeros(values.shape, np.int64)
    begins[:, 1:] = np.where(ordered[:, 1:] != ordered[:, :-1], np.arange(1, values.shape[1]), 0)
    firsts = np.empty(values.shape, np.int64)
    np.put_along_axis(firsts, order, np.take_along_axis(order, np.maximum.accumulate(begins, axis=1), axis=1), axis=1)
    return np.where(values < 0, -1, firsts)


def _refined(signs: Sequence[int], devices: Sequence[Ints], network: Network) -> list[int]:
    """Signs that tell apart, too, who keeps other company: on its adapters, in its machines, below its switches."""
    topology = network.topology
    counts = [len(own) for own in devices]
    flat = np.concatenate(devices)
    machine, nic = topology.table[flat, 0], topology.table[flat, 5]
    who = np.repeat(np.array(signs), counts) * max(counts) + np.concatenate([np.arange(count) for count in counts])
    most = int(np.max(nic)) + 1
    adapter = machine * most + nic
    adapters, crews = _bags(adapter, who)
    crew = crews[np.searchsorted(adapters, adapter)]  # one machine's adapters may carry unequally many devices
    company = np.full(len(topology.machines), -1)
    machines, numbers = _bags(adapters // most, crews)
    company[machines] = numbers
    above = topology.switches
    switches, crowds = _bags(above.ravel(), np.repeat(company, above.shape[1]))
    crowd = np.full(len(topology.uplinks) + 1, -1)  # the last one: no switch
    crowd[switches] = np.where(switches < 0, -1, crowds)
    rows = np.concatenate([crew[:, None], company[machine][:, None], crowd[above[machine]]], axis=1)
    ends = np.cumsum(counts).tolist()
    return _numbered(
        (sign, rows[end - count : end].tobytes()) for sign, count, end in zip(signs, counts, ends, strict=True)
    )


def _bags(groups: Ints, values: Ints) -> tuple[Ints, Ints]:
    """The groups, each once, and a number for each, the same for groups with the same values as often."""
    order = np.lexsort((values, groups))
    groups, values = groups[order], values[order]
    begins = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1)).tolist()
    numbers = _numbered(values[begin:end].tobytes() for begin, end in pairwise([*begins, len(groups)]))
    return groups[begins], np.array(numbers, np.int64)
