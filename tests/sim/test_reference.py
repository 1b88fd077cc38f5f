"""A state machine builds pipelines, links and noise by rules, and holds the engine equal to the reference."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from steelyard.results.ledger import ledgers
from steelyard.results.record import event_frame
from steelyard.sim.program import Program
from steelyard.sim.running import Factors
from steelyard.sim.schedule import order

seconds = st.floats(1e-5, 10.0)
factors = st.floats(0.5, 3.0)
MAX_PIPES, STEPS = 3, 4
which = st.integers(0, 99)


class EngineAgainstReference(RuleBasedStateMachine):
    """Each rule changes one thing; after each, both are run and must agree."""

    build: Any
    reference: ModuleType

    @initialize(first=seconds)
    def begin(self, first: float) -> None:
        self.pipes = [self._pipe("a", "gpipe", 1, [first], [1.0])]
        self.sync_s = 0.01
        self.sync_noise = [1.0] * STEPS

    def _pipe(self, label: str, schedule: str, workers: int, times: list[float], sizes: list[float]) -> Any:
        """Stages with such times a sample; micro-batches of such sizes."""
        stages = len(times)
        return self.reference.Pipe(
            label=label,
            schedule=schedule,
            workers=workers,
            forward=[[each * size for size in sizes] for each in times],
            backward=[[2.5 * each * size for size in sizes] for each in reversed(times)],
            latency=[0.0] * stages,
            busy=[[0.0] * len(sizes) for _ in times],
            updates=[0.1] * workers,
        )

    @precondition(lambda self: len(self.pipes) < MAX_PIPES)
    @rule(
        schedule=st.sampled_from(["gpipe", "1f1b"]),
        times=st.lists(seconds, min_size=1, max_size=5),
        sizes=st.lists(st.floats(0.5, 3.0), min_size=1, max_size=7),
    )
    def add_pipe(self, schedule: str, times: list[float], sizes: list[float]) -> None:
        self.pipes.append(self._pipe("abc"[len(self.pipes)], schedule, len(times), times, sizes))

    @precondition(lambda self: len(self.pipes) < MAX_PIPES)
    @rule(
        schedule=st.sampled_from(["gpipe", "interleaved"]),
        workers=st.integers(2, 3),
        chunks=st.integers(2, 3),
        turns=st.integers(1, 3),
        data=st.data(),
    )
    def add_looped_pipe(self, schedule: str, workers: int, chunks: int, turns: int, data: st.DataObject) -> None:
        """Each worker has several stages; the micro-batches are a multiple of the workers."""
        stages, count = workers * chunks, workers * turns
        times = data.draw(st.lists(seconds, min_size=stages, max_size=stages))
        sizes = data.draw(st.lists(st.floats(0.5, 3.0), min_size=count, max_size=count))
        self.pipes.append(self._pipe("abc"[len(self.pipes)], schedule, workers, times, sizes))

    @precondition(lambda self: len(self.pipes) > 1)
    @rule()
    def remove_pipe(self) -> None:
        self.pipes.pop()

    @rule(which=which, speed=st.floats(0.1, 10.0))
    def change_speed_of_a_stage(self, which: int, speed: float) -> None:
        pipe = self.pipes[which % len(self.pipes)]
        stage = which // len(self.pipes) % pipe.stages
        pipe.forward[stage] = [each / speed for each in pipe.forward[stage]]

    @rule(which=which, latency=seconds, data=st.data())
    def change_links(self, which: int, latency: float, data: st.DataObject) -> None:
        pipe = self.pipes[which % len(self.pipes)]
        stage = which // len(self.pipes) % pipe.stages
        pipe.latency[stage] = latency
        per_sample = data.draw(st.lists(seconds, min_size=pipe.stages, max_size=pipe.stages))
        pipe.busy = [[each * (1 + number % 3) for number in range(len(pipe.forward[0]))] for each in per_sample]

    @rule(which=which)
    def change_whether_senders_wait(self, which: int) -> None:
        pipe = self.pipes[which % len(self.pipes)]
        pipe.waiting = not pipe.waiting

    @rule(which=which, update=seconds)
    def change_update(self, which: int, update: float) -> None:
        pipe = self.pipes[which % len(self.pipes)]
        pipe.updates[which % pipe.workers] = update

    @rule(sync=st.one_of(st.just(0.0), seconds))
    def change_sync(self, sync: float) -> None:
        self.sync_s = sync

    @rule(which=which, noise=st.lists(factors, min_size=4, max_size=12))
    def add_compute_noise(self, which: int, noise: list[float]) -> None:
        pipe = self.pipes[which % len(self.pipes)]
        draws = STEPS * len(pipe.forward[0]) * (pipe.stages // pipe.workers)
        pipe.compute_noise = [((noise[w % 4 :] + noise) * draws)[:draws] for w in range(pipe.workers)]

    @rule(
        which=which,
        update=st.lists(factors, min_size=STEPS, max_size=STEPS),
        sync=st.lists(factors, min_size=STEPS, max_size=STEPS),
    )
    def add_noise(self, which: int, update: list[float], sync: list[float]) -> None:
        pipe = self.pipes[which % len(self.pipes)]
        pipe.update_noise = [update] * pipe.workers
        self.sync_noise = sync

    @invariant()
    def both_agree(self) -> None:
        groups = self._groups()
        sync_s = [self.sync_s * factor for factor in self.sync_noise]
        ends, lanes = self.reference.run(self.pipes, [(members, sync_s) for members in groups], STEPS)
        program = self.build.program(self.pipes, [(members, self.sync_s) for members in groups])
        launch = self.build.execute(program, self._factors(len(groups)), steps=STEPS)
        assert launch.ends == pytest.approx(ends, rel=1e-9)
        lines = ledgers(event_frame(launch.events or []), list(lanes))
        step_s = (ends[-1] - ends[0]) / (STEPS - 1)
        for name, lane in lanes.items():
            expected = self.reference.ledger(lane, ends[0], ends[-1], STEPS - 1)
            found = {line: getattr(lines[name], line) for line in expected}
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9 * step_s)
            assert lines[name].total_s() == pytest.approx(step_s, rel=1e-9)

    def _groups(self) -> list[list[tuple[int, int]]]:
        """The first workers of all pipes synchronise, and the second ones, ..."""
        most = max(pipe.workers for pipe in self.pipes)
        rows = [[(number, w) for number, pipe in enumerate(self.pipes) if w < pipe.workers] for w in range(most)]
        return [row for row in rows if len(row) > 1]

    def _factors(self, groups: int) -> Factors:
        return Factors(
            compute={p.name(w): row for p in self.pipes for w, row in enumerate(p.compute_noise)},
            optimizer={p.name(w): row for p in self.pipes for w, row in enumerate(p.update_noise)},
            syncs=dict.fromkeys(range(groups), self.sync_noise),
        )


def test_engine_against_reference(build: Any, reference: ModuleType) -> None:
    """Any speeds, links, schedules and noise: the same moments, and the same ledgers, to 1e-9."""
    kind = type("Machine", (EngineAgainstReference,), {"build": build, "reference": reference})
    run_state_machine_as_test(kind, settings=settings(max_examples=15, stateful_step_count=10))


@given(
    kind=st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    workers=st.integers(1, 6),
    chunks=st.integers(1, 4),
    turns=st.integers(1, 4),
    odd=st.integers(0, 5),
)
def test_both_have_the_same_order(
    reference: ModuleType, kind: Any, workers: int, chunks: int, turns: int, odd: int
) -> None:
    """The order of the schedules, written twice."""
    chunks = 1 if kind == "1f1b" else chunks
    count = workers * turns if kind == "interleaved" else workers * turns + odd
    stages = workers * chunks
    if stages == 1:
        kind = "1f1b"
    pipe = reference.Pipe("p", kind, workers, [[1.0] * count] * stages, [[1.0] * count] * stages, [], [], [0.0])
    for place in range(workers):
        engine = [
            (p.backward, p.chunk * workers + place, p.micro_batch) for p in order(kind, workers, place, chunks, count)
        ]
        assert engine == reference.order(pipe, place)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_pipeline_by_hand(build: Any, reference: ModuleType, waiting: bool) -> None:
    """Two stages, two micro-batches, a link that is busy for 2 and 1 late: every moment added up by hand.

    Stage 0: F0 0-1, F1 1-2. Messages leave at 3 and 5, arrive at 4 and 6. Stage 1: F0 4-5, F1 6-7, B0 7-9, B1 9-11.
    Gradients leave at 11 and 13 and arrive at 12 and 14; stage 0: B0 12-14, B1 14-16. Who waits for its messages loses
    two seconds after each: F1 of stage 0 is 3-4, leaves at 6, arrives at 7; stage 1: F1 7-8, B0 8-10, sends till 12, B1
    12-14, sends till 16; stage 0 gets them at 13 and 17: B0 13-15, B1 17-19.
    """
    pipe = reference.Pipe(
        "p", "gpipe", 2, [[1.0, 1.0]] * 2, [[2.0, 2.0]] * 2, [1.0, 0.0], [[2.0, 2.0], [0.0, 0.0]], [0.5, 0.5], waiting
    )
    expected = (19.0 if waiting else 16.0) + 0.5
    assert reference.run([pipe], [], 1)[0] == [expected]
    program: Program = build.program([pipe])
    assert build.execute(program, steps=1).ends == [expected]
    assert build.execute(build.program([replace(pipe, updates=[0.0, 0.0])]), steps=1).ends == [expected - 0.5]
