"""What attention over operators is held against: bounds below the engine, the exact placement, the best known one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from steelyard.policies import make_policy
from steelyard.policies._base import canonical
from steelyard.policies.graphs import plan_of, tasks_of
from steelyard.policies.list_schedules import earliest_finish, in_order
from steelyard.policies.tasks import Tasks, Timetable
from steelyard.runner.attention.graph_worlds import LARGE, SMALL, graph_worlds, training_graphs
from steelyard.runner.attention.graphs import Graph
from steelyard.runner.attention.operators import (
    BestKnown,
    ExactPlacement,
    Rooms,
    improved,
    least_tasks,
    operator_contestants,
    step_s,
    table_of,
)
from steelyard.runner.attention.worlds import Family, world
from steelyard.sim.noise import stream
from steelyard.sim.plan import Infeasible
from steelyard.sim.spec import scenario_from
from steelyard.sim.view import View

HEFT, SINGLE = make_policy("heft"), make_policy("place-single")


def orders(inputs: list[list[int]], begun: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Every order in which each operator comes after those that feed it."""
    if len(begun) == len(inputs):
        yield begun
    for task in range(len(inputs)):
        if task not in begun and set(inputs[task]) <= set(begun):
            yield from orders(inputs, (*begun, task))


def at_random(tasks: Tasks, draws: np.random.Generator) -> Timetable:
    """Any devices, in an order that follows the edges."""
    devices = draws.integers(len(tasks.devices), size=tasks.count).tolist()
    keys = draws.random(tasks.count)
    sequence: list[int] = []
    while len(sequence) < tasks.count:
        ready = [t for t in range(tasks.count) if t not in sequence and set(tasks.inputs[t]) <= set(sequence)]
        sequence.append(min(ready, key=lambda task: keys[task]))
    return in_order(tasks, devices, sequence)


# Worlds


def test_worlds_are_many_and_repeat() -> None:
    assert len(SMALL) * 13 >= 50
    assert len(LARGE) * 7 >= 50
    first, second = (graph_worlds(SMALL + LARGE, "held out", 3, 1) for _ in range(2))
    assert first == second
    for family, scenario in first:
        low, high = family.devices
        assert 4 <= low <= len(scenario.cluster.devices) <= high
        assert family.graph is not None
        assert family.graph.operators[0] <= len(scenario.workload.layers) <= family.graph.operators[1]


def test_what_is_tuned_on_is_not_what_is_scored() -> None:
    held_out = {each.model_dump_json() for _, each in graph_worlds(SMALL + LARGE, "held out", 0, 2)}
    training = {each.model_dump_json() for each in training_graphs(0, 10)}
    assert len(training) == 10
    assert not training & held_out
    assert not any(family.trained for family in SMALL)
    assert any(not family.trained for family in LARGE)


@pytest.mark.parametrize("shape", ["branches", "layers", "cells"])
@pytest.mark.parametrize("count", [7, 30])
def test_a_graph_has_one_end_and_more_than_one_way(shape: str, count: int) -> None:
    family = Family("any", "", graph=Graph(shape, (count, count)))  # type: ignore[arg-type]  # one of its shapes
    for number in range(5):
        layers = world(family, 1, "test", number).workload.layers
        assert len(layers) == count
        read = {name for layer in layers for name in layer.inputs or []}
        assert {layer.name for layer in layers} - read == {layers[-1].name}
        assert any(len(layer.inputs or []) > 1 for layer in layers)


# Bounds below the engine


@pytest.mark.parametrize("family", [SMALL[0], SMALL[2], SMALL[3]], ids=lambda family: family.name)
def test_no_placement_is_faster_or_takes_less_than_the_bounds(family: Family) -> None:
    """Random placements: the engine is never below the relaxed timetable, and no valid plan is refused a room."""
    draws = stream(0, "bounds", family.name)
    valid = 0
    for number in range(4):
        scenario = world(family, 2, "test", number)
        view, sizes = canonical(View.of(scenario)), [scenario.workload.global_batch]
        tasks = least_tasks(view, sizes)
        rooms = Rooms.of(view, tasks, sizes)
        for _ in range(12):
            table = at_random(tasks, draws)
            seconds = step_s(scenario, plan_of(view, table, "gpipe", sizes))
            assert seconds >= table.makespan_s * (1 - 1e-9)
            if math.isfinite(seconds):
                valid += 1
                assert all(rooms(table.device, task) for task in range(tasks.count))
                assert all(left >= 0 for left in table.left)
    assert valid > 5


# References


def test_the_exact_placement_is_the_best_of_all() -> None:
    """Every placement in every order of graphs of five operators on two devices, simulated."""
    family = Family("tiny", "", devices=(2, 2), overlaps=True, graph=Graph("branches", (5, 5)), part=(0.8, 2.0))
    for number in range(3):
        scenario = world(family, 4, "test", number)
        view = canonical(View.of(scenario))
        tasks, sizes = tasks_of(view, "gpipe", [view.global_batch]), [view.global_batch]
        plans = {
            plan.sha256: plan
            for devices in itertools.product(tasks.devices, repeat=tasks.count)
            for order in orders([list(each) for each in tasks.inputs])
            for plan in [plan_of(view, in_order(tasks, devices, order), "gpipe", sizes)]
        }
        best = min(step_s(scenario, plan) for plan in plans.values())
        exact = ExactPlacement((HEFT,))
        found = step_s(scenario, exact.allocate(View.of(scenario)))
        assert best * (1 - 1e-9) <= found <= best * (1 + 2e-4)
        assert list(exact.proofs.values()) == [True]


def test_references_are_no_slower_than_the_others() -> None:
    policies = operator_contestants({})
    for reference, family in ((ExactPlacement, SMALL[1]), (BestKnown, LARGE[0])):
        scenario = world(family, 5, "test", 0)
        best = step_s(scenario, reference(tuple(policies.values())).allocate(View.of(scenario)))
        for policy in policies.values():
            assert best <= step_s(scenario, policy.allocate(View.of(scenario))) * (1 + 1e-4)


def test_where_nothing_fits_the_references_say_so() -> None:
    family = Family("full", "", devices=(4, 4), overlaps=True, graph=Graph("branches", (5, 5)), part=(0.01, 0.02))
    document = world(family, 1, "test", 0).model_dump(mode="json")
    for node in document["cluster"]["nodes"]:
        for device in node["devices"]:
            device["memory_gib"] = 1e-6
    view = View.of(scenario_from(document))
    for reference in (ExactPlacement((HEFT, SINGLE)), BestKnown((HEFT, SINGLE))):
        with pytest.raises(Infeasible, match="placement"):
            reference.allocate(view)


def test_changes_never_make_a_step_longer() -> None:
    scenario = world(LARGE[1], 6, "test", 1)
    view = canonical(View.of(scenario))
    sizes = [view.global_batch]
    tasks = tasks_of(view, "gpipe", sizes)
    table = earliest_finish(tasks)
    again = table_of(view, tasks, plan_of(view, table, "gpipe", sizes))
    assert again.device == table.device
    assert again.makespan_s <= table.makespan_s
    later = improved(again, stream(0, "changes"), 300)
    assert later.step_s < again.step_s
    place = {task: moment for moment, task in enumerate(later.sequence)}
    assert all(place[source] < place[task] for task in range(tasks.count) for source in tasks.inputs[task])
    assert min(later.left) >= 0
