"""Builders of small worlds whose times are exact, for the tests of the engine."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from steelyard.results.ledger import ledgers
from steelyard.results.record import LEDGER_LINES, DeviceLedger, event_frame
from steelyard.sim import loop, recurrence
from steelyard.sim.compiler import compile_plan
from steelyard.sim.device import Cluster, Device, LayerPoint, LayerProfile, Link, Node
from steelyard.sim.network import Transfer
from steelyard.sim.plan import Pipeline, Plan, Replica, Stage
from steelyard.sim.program import Job, Program, Send, Sync, Worker
from steelyard.sim.running import Factors, Launch
from steelyard.sim.schedule import order
from steelyard.sim.spec import Scenario
from steelyard.sim.workload import Layer, Model, Operator, Workload

FREE_GB_PER_S = 1e12
"""A byte takes 10^-21 s."""
ALL_STEPS = Factors(syncs={-1: []})
"""Noise of a collective that does not exist: with noise every step is simulated."""
WORK = Operator(kind="matmul", flops=[1.0], elements=[1.0])


@dataclass(frozen=True)
class Build:
    """Builds scenarios, plans and programs from plain numbers, and runs them."""

    @staticmethod
    def layers(forward: Sequence[float], outputs: Sequence[float], parameters: Sequence[int]) -> list[Layer]:
        return [
            Layer(
                name=f"l{number}",
                parameters=count,
                trainable_parameters=count,
                forward=[WORK],
                backward=[WORK],
                activation_elements=[float(8 + number)],
                output_elements=[size],
            )
            for number, (_, size, count) in enumerate(zip(forward, outputs, parameters, strict=True))
        ]

    @staticmethod
    def device(name: str, forward: Sequence[float], backward: Sequence[float], **changes: Any) -> Device:
        """Its layers take so many seconds a sample; ``optimizer`` a list of seconds, ``degrees`` those measured."""
        optimizer = changes.pop("optimizer", [0.0] * len(forward))
        degrees = changes.pop("degrees", (1,))
        points = [
            LayerPoint(
                micro_batch=size,
                tensor_degree=degree,
                forward_s=[size * each / degree for each in forward],
                backward_s=[size * each / degree for each in backward],
                optimizer_s=[each / degree for each in optimizer],
            )
            for degree in degrees
            for size in (1, 2)
        ]
        profile = LayerProfile(model="m", sequence_length=1, dtype="fp32", points=points, tensor_collectives=False)
        fields = {"peak_tflops": {"fp32": 1.0}, "memory_gib": 1e6, "memory_bandwidth_gb_per_s": 1.0, **changes}
        return Device(name=name, layer_profile=profile, **fields)

    @staticmethod
    def scenario(
        devices: Sequence[Device],
        *,
        batch: int,
        outputs: float | Sequence[float] = 0.0,
        parameters: int | Sequence[int] = 1,
        layers: Sequence[dict[str, Any]] = (),
        per_node: int = 1,
        latencies: float | Sequence[float] = 0.0,
        gb_per_s: float | Sequence[float] = FREE_GB_PER_S,
        nodes: Sequence[dict[str, Any]] = (),
        cluster: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Scenario:
        """Devices in nodes of ``per_node``, each node with an adapter; an element is 4 bytes, a sample one token.

        ``latencies`` (seconds) and ``gb_per_s`` are those of the nodes' adapters and inner links, the same for all or
        one each; ``layers`` and ``nodes`` change fields of single ones.
        """
        assert devices[0].layer_profile is not None
        times = devices[0].layer_profile.points[0].forward_s
        made = Build.layers(times, _each(outputs, len(times)), _each(parameters, len(times)))
        made = [layer.model_copy(update=update) for layer, update in zip(made, _padded(layers, len(made)), strict=True)]
        count = -(-len(devices) // per_node)
        ways = list(zip(_each(latencies, count), _each(gb_per_s, count), strict=True))
        kinds = {way: Link(name="link", latency_us=way[0] * 1e6, bandwidth_gb_per_s=way[1]) for way in ways}
        links = [kinds[way] for way in ways]
        placed = [
            Node(
                name=f"n{number}",
                devices=list(devices[number * per_node : (number + 1) * per_node]),
                link=link,
                network=link,
                **update,
            )
            for number, (link, update) in enumerate(zip(links, _padded(nodes, count), strict=True))
        ]
        workload = Workload(
            model=Model(name="m", layers=made), global_batch=batch, sequence_length=1, dtype="fp32", optimizer="sgd"
        )
        return Scenario(name="world", cluster=Cluster(nodes=placed, **(cluster or {})), workload=workload, **changes)

    @staticmethod
    def chain(forward: Sequence[float], backward: Sequence[float], micro_batches: int, **changes: Any) -> Scenario:
        """One device and one layer for each stage; every device has the times of all."""
        devices = [Build.device(f"d{number}", forward, backward) for number in range(len(forward))]
        return Build.scenario(devices, **{"batch": micro_batches, **changes})

    @staticmethod
    def pipeline(cuts: Sequence[int], devices: Sequence[Any], micro_batches: Iterable[int], **changes: Any) -> Pipeline:
        """Stages between the cuts; of each a device's name, the names of a group, or a list of groups."""
        stages = []
        for (first, last), held in zip(itertools.pairwise(cuts), devices, strict=True):
            groups = [[held]] if isinstance(held, str) else [held] if isinstance(held[0], str) else held
            replicas = [Replica(devices=list(group), share=1 / len(groups)) for group in groups]
            stages.append(Stage(first=first, last=last, replicas=replicas, **changes))
        return Pipeline(stages=stages, micro_batches=list(micro_batches))

    @staticmethod
    def straight(stages: int, micro_batches: int, schedule: str, workers: int | None = None) -> Plan:
        """One pipeline of a layer a stage over d0, d1, ..., in micro-batches of one sample."""
        names = [f"d{number % (workers or stages)}" for number in range(stages)]
        return Plan(pipelines=[Build.pipeline(range(stages + 1), names, [1] * micro_batches)], schedule=schedule)

    @staticmethod
    def run(scenario: Scenario, plan: Plan, *, steps: int = 3, record: bool = True) -> Launch:
        """The event loop's launch of a plan, every step and every pipeline of it simulated; held against short cuts."""
        plan.check(scenario)
        program = compile_plan(scenario, plan)
        launch = Build.execute(program, steps=steps, record=record)
        folded = compile_plan(scenario, plan, folded=True)
        if len(folded.workers) < len(program.workers):
            other = Build.execute(folded, steps=steps, record=record)
            assert other.ends == pytest.approx(launch.ends, rel=1e-9)
            if launch.events is not None:
                _same_ledgers(launch, other, folded.stands_for)
        return launch

    @staticmethod
    def execute(program: Program, factors: Factors | None = None, *, steps: int = 3, record: bool = True) -> Launch:
        """The same of a program; held against the two that take short cuts, so that every test proves them too.

        The loop stops simulating when steps repeat, and the recurrence needs no events where nobody shares a link.
        Of several steps the last has one behind it too: what that sends may be in its way.
        """
        more = int(factors is None and steps > 1)
        launch = loop.run_launch(program, factors or ALL_STEPS, steps=steps + more, record=record)
        launch.ends = launch.ends[:steps]
        if launch.events is not None:
            launch.events = [row for row in launch.events if row[2] < steps]
        others = [loop.run_launch(program, factors, steps=steps + more, record=record)]
        if recurrence.applies(program):
            others += filter(None, [recurrence.run_launch(program, factors, steps=steps, record=record)])
        for other in others:
            assert other.ends[:steps] == pytest.approx(launch.ends, rel=1e-9)
            assert other.activations == pytest.approx(launch.activations, rel=1e-9)
        return launch

    @staticmethod
    def step_s(scenario: Scenario, plan: Plan, *, steps: int = 4) -> float:
        """Seconds of the last of a few steps."""
        ends = Build.run(scenario, plan, steps=steps, record=False).ends
        return ends[-1] - ends[-2]

    @staticmethod
    def ledgers(launch: Launch, names: Iterable[str]) -> dict[str, DeviceLedger]:
        return ledgers(event_frame(launch.events or []), names)

    @staticmethod
    def program(pipes: Sequence[Any], syncs: Sequence[tuple[Sequence[tuple[int, int]], float]] = ()) -> Program:
        """The program of pipes as the reference takes them: each channel and each collective on a link of its own."""
        links = _Links()
        numbers = {
            (p, w): i for i, (p, w) in enumerate((p, w) for p, pipe in enumerate(pipes) for w in range(pipe.workers))
        }
        workers = [_worker(pipes[p], p, w, numbers, links) for p, w in numbers]
        collectives = []
        after: dict[int, list[int]] = {}
        for number, (members, seconds) in enumerate(syncs):
            collectives.append(
                Sync(tuple(numbers[member] for member in members), links.timed(("sync", number), seconds))
            )
            for member in members:
                after.setdefault(numbers[member], []).append(number)
        return Program(
            workers=tuple(_with_syncs(worker, after.get(number, [])) for number, worker in enumerate(workers)),
            channels=len(links.channels),
            syncs=tuple(collectives),
            loaders=(),
            capacities=(1.0,) * len(links.resources),
        )


def _same_ledgers(launch: Launch, folded: Launch, stands_for: dict[str, str]) -> None:
    """A device that another stands for does what that one does."""
    step_s = launch.ends[-1] - launch.ends[0]
    apart, together = (Build.ledgers(each, {row[3] for row in each.events or []}) for each in (launch, folded))
    for name, ledger in apart.items():
        other = together[stands_for.get(name, name)]
        lines = [[getattr(each, line) for line in LEDGER_LINES] for each in (ledger, other)]
        assert lines[0] == pytest.approx(lines[1], rel=1e-9, abs=1e-9 * step_s), name


class _Links:
    """A resource of one byte per second for everything that sends."""

    def __init__(self) -> None:
        self.resources: dict[object, int] = {}
        self.channels: dict[object, int] = {}

    def timed(self, who: object, seconds: float, latency_s: float = 0.0) -> Transfer:
        resource = self.resources.setdefault(who, len(self.resources))
        return Transfer(latency_s, seconds, ((resource, 1.0),), latency_s + seconds, "profiled")

    def channel(self, who: object) -> int:
        return self.channels.setdefault(who, len(self.channels))


def _worker(pipe: Any, number: int, place: int, numbers: dict[tuple[int, int], int], links: _Links) -> Worker:
    chunks, count = pipe.stages // pipe.workers, len(pipe.forward[0])
    owned = tuple(range(place, pipe.stages, pipe.workers))
    kind = pipe.schedule if pipe.stages > 1 else "1f1b"

    def job(backward: bool, stage: int, micro_batch: int) -> Job:
        target, hop = (stage - 1, stage - 1) if backward else (stage + 1, stage)
        sends: tuple[Send, ...] = ()
        if 0 <= target < pipe.stages:
            to, ends = target % pipe.workers, (number, place, target % pipe.workers)
            busy = 0.0 if to == place else pipe.busy[hop][micro_batch]
            transfer = links.timed(ends, busy, 0.0 if to == place else pipe.latency[hop])
            sends = (Send(links.channel(ends), numbers[number, to], target // pipe.workers, transfer),)
        seconds = (pipe.backward if backward else pipe.forward)[stage][micro_batch]
        source = stage + 1 if backward else stage - 1
        needs = int(0 <= source < pipe.stages)
        return Job((seconds,), 0.0, 1, float(1 + stage), 0.0, needs, sends)

    return Worker(
        members=((pipe.name(place),),),
        pipeline=number,
        position=place,
        stages=owned,
        pieces=order(kind, pipe.workers, place, chunks, count),
        classes=tuple(range(count)),
        jobs=tuple(
            tuple(tuple(job(backward, stage, each) for each in range(count)) for stage in owned)
            for backward in (False, True)
        ),  # type: ignore[arg-type]
        optimizer_s=(pipe.updates[place],),
        overlapping=not pipe.waiting,
    )


def _with_syncs(worker: Worker, after: Sequence[int]) -> Worker:
    return dataclasses.replace(worker, after=tuple(after))


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value] * count


def _padded(updates: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [*updates, *[{}] * (count - len(updates))]


@pytest.fixture(scope="session")
def build() -> type[Build]:
    """Builders of scenarios, plans and programs."""
    return Build


@pytest.fixture(scope="session")
def reference(module_at: Callable[[str], ModuleType]) -> ModuleType:
    """The second engine."""
    return module_at("sim/reference.py")
