"""A state machine builds clusters, workloads and plans by rules, and holds the engine equal to the reference."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from steelyard.results.ledger import ledgers
from steelyard.results.record import event_frame
from steelyard.sim import engine

seconds = st.floats(1e-5, 10.0)
factors = st.floats(0.5, 3.0)
MAX_DEVICES, MAX_SAMPLES, STEPS = 5, 24, 4


def _load(path: Path) -> ModuleType:
    """Tests are no package here (import mode importlib), so a module beside this one is loaded by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _load(Path(__file__).with_name("reference.py"))


@dataclass
class Lane:
    """A device of the model: an affine time, its samples per step, and its noise."""

    name: str
    fixed_s: float
    per_sample_s: float
    optimizer_s: float
    samples: int
    compute: list[float] = field(default_factory=lambda: [1.0] * (STEPS * MAX_SAMPLES))
    optimizer: list[float] = field(default_factory=lambda: [1.0] * STEPS)

    def sizes(self, largest: int) -> list[int]:
        """Whole micro-batches, and what is left over."""
        whole, rest = divmod(self.samples, largest)
        return [largest] * whole + [rest] * (rest > 0)

    def forward(self, largest: int) -> list[float]:
        return [self.fixed_s + self.per_sample_s * size for size in self.sizes(largest)]

    def backward(self, largest: int) -> list[float]:
        return [2.5 * each for each in self.forward(largest)]


class EngineAgainstReference(RuleBasedStateMachine):
    """Each rule changes one thing; after each, both are run and must agree."""

    lanes: list[Lane]

    @initialize(fixed=seconds, per_sample=seconds, samples=st.integers(1, MAX_SAMPLES))
    def begin(self, fixed: float, per_sample: float, samples: int) -> None:
        self.lanes = [Lane("device0", fixed, per_sample, 0.1, samples)]
        self.largest = MAX_SAMPLES
        self.sync_s = 0.01
        self.sync_noise = [1.0] * STEPS

    @precondition(lambda self: len(self.lanes) < MAX_DEVICES)
    @rule(fixed=seconds, per_sample=seconds, optimizer=seconds, samples=st.integers(1, MAX_SAMPLES))
    def add_device(self, fixed: float, per_sample: float, optimizer: float, samples: int) -> None:
        self.lanes.append(Lane(f"device{len(self.lanes)}", fixed, per_sample, optimizer, samples))

    @precondition(lambda self: len(self.lanes) > 1)
    @rule()
    def remove_device(self) -> None:
        self.lanes.pop()

    @rule(which=st.integers(0, MAX_DEVICES - 1), speed=st.floats(0.1, 10.0))
    def change_speed(self, which: int, speed: float) -> None:
        lane = self.lanes[which % len(self.lanes)]
        lane.fixed_s /= speed
        lane.per_sample_s /= speed

    @rule(which=st.integers(0, MAX_DEVICES - 1), optimizer=seconds)
    def change_optimizer(self, which: int, optimizer: float) -> None:
        self.lanes[which % len(self.lanes)].optimizer_s = optimizer

    @rule(source=st.integers(0, MAX_DEVICES - 1), sink=st.integers(0, MAX_DEVICES - 1), samples=st.integers(1, 10))
    def move_samples(self, source: int, sink: int, samples: int) -> None:
        giver, taker = self.lanes[source % len(self.lanes)], self.lanes[sink % len(self.lanes)]
        moved = min(samples, giver.samples - 1, MAX_SAMPLES - taker.samples)
        giver.samples -= moved
        taker.samples += moved

    @rule(sync=st.one_of(st.just(0.0), seconds))
    def change_link(self, sync: float) -> None:
        self.sync_s = sync

    @rule(largest=st.integers(1, MAX_SAMPLES))
    def change_accumulation(self, largest: int) -> None:
        self.largest = largest

    @rule(which=st.integers(0, MAX_DEVICES - 1), noise=st.lists(factors, min_size=4, max_size=12))
    def add_compute_noise(self, which: int, noise: list[float]) -> None:
        self.lanes[which % len(self.lanes)].compute = (noise * STEPS * MAX_SAMPLES)[: STEPS * MAX_SAMPLES]

    @rule(
        which=st.integers(0, MAX_DEVICES - 1),
        optimizer=st.lists(factors, min_size=STEPS, max_size=STEPS),
        sync=st.lists(factors, min_size=STEPS, max_size=STEPS),
    )
    def add_noise(self, which: int, optimizer: list[float], sync: list[float]) -> None:
        self.lanes[which % len(self.lanes)].optimizer = optimizer
        self.sync_noise = sync

    @invariant()
    def both_agree(self) -> None:
        machines = [
            reference.Machine(
                lane.forward(self.largest),
                lane.backward(self.largest),
                lane.optimizer_s,
                iter(lane.compute),
                iter(lane.optimizer),
            )
            for lane in self.lanes
        ]
        ends = reference.run(machines, [self.sync_s * factor for factor in self.sync_noise])
        launch = self._engine()
        assert launch.ends == pytest.approx(ends, rel=1e-9)
        lines = ledgers(event_frame(launch.events or []), [lane.name for lane in self.lanes])
        step_s = (ends[-1] - ends[0]) / (STEPS - 1)
        for lane, machine in zip(self.lanes, machines, strict=True):
            own = lines[lane.name]
            expected = reference.ledger(machine, ends[0], ends[-1], STEPS - 1)
            found = {line: getattr(own, line) for line in expected}
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9 * step_s)
            assert own.total_s() == pytest.approx(step_s, rel=1e-9)

    def _engine(self) -> engine.Launch:
        works = [
            engine.Work(
                lane.name,
                number,
                tuple(lane.forward(self.largest)),
                tuple(lane.backward(self.largest)),
                lane.optimizer_s,
            )
            for number, lane in enumerate(self.lanes)
        ]
        noise = engine.Noise(
            compute={lane.name: lane.compute for lane in self.lanes},
            optimizer={lane.name: lane.optimizer for lane in self.lanes},
            communication=self.sync_noise,
        )
        return engine.run_launch(works, self.sync_s, noise, steps=STEPS)


TestEngineAgainstReference = EngineAgainstReference.TestCase
TestEngineAgainstReference.settings = settings(max_examples=25, stateful_step_count=12)
