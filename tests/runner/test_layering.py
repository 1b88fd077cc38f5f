"""Tables of layers and messages, from answers as workers give them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.devices import NamedLane
from steelyard.runner.launch import LaunchResult
from steelyard.runner.layering import build_layer_profile
from steelyard.runner.linking import build_messages, groups_of, message_sizes, message_tasks
from steelyard.sim.device import Profile, ProfilePoint
from steelyard.sim.workload import Workload, at

Way = list[float]


def launch_of(layers: dict[int, list[list[Way]]], quiet: bool = True) -> LaunchResult:
    """One rank; per micro-batch size the steps, each the layers' seconds forward and backward."""
    tasks = [{"op": "profile", "micro_batch": size} for size in layers]
    answers: list[dict[str, Any]] = [{"layers": each, "quiet": [quiet] * len(each)} for each in layers.values()]
    return LaunchResult(tasks, [answers])


def profile_of(workload: Workload, points: dict[int, tuple[float, float]]) -> Profile:
    return Profile(
        workload=workload.key,
        points=[
            ProfilePoint(micro_batch=size, forward_s=forward, backward_s=backward)
            for size, (forward, backward) in points.items()
        ],
        optimizer_s=0.5,
    )


@given(st.lists(st.floats(1e-4, 1.0), min_size=4, max_size=4), st.floats(0.5, 2.0))
def test_layers_keep_their_proportions_and_sum_to_the_whole(
    tiny_workload: Workload, seconds: list[float], whole: float
) -> None:
    backward = [2 * each for each in seconds]
    launch = launch_of({size: [[seconds, backward]] * 3 for size in (2, 8)})
    profile = profile_of(tiny_workload, dict.fromkeys((2, 8), (whole, 3 * whole)))
    found = build_layer_profile(tiny_workload, [launch, launch], 0, profile)
    assert found is not None
    for point in found.points:
        assert sum(point.forward_s) == pytest.approx(whole)
        assert sum(point.backward_s) == pytest.approx(3 * whole)
        assert [each / whole for each in point.forward_s] == pytest.approx([each / sum(seconds) for each in seconds])
        assert sum(point.optimizer_s) == pytest.approx(0.5)
        sizes = [layer.trainable_parameters for layer in tiny_workload.layers]
        assert point.optimizer_s.index(max(point.optimizer_s)) == sizes.index(max(sizes))


def test_a_family_whose_layers_are_not_told_apart_has_no_profile_of_them(tiny_workload: Workload) -> None:
    profile = profile_of(tiny_workload, dict.fromkeys((2, 8), (1.0, 2.0)))
    launch = launch_of({size: [[[1.0], [2.0]]] * 3 for size in (2, 8)})
    assert build_layer_profile(tiny_workload, [launch], 0, profile) is None
    assert build_layer_profile(tiny_workload, [launch_of({2: [], 8: []})], 0, profile) is None


def test_a_message_takes_from_the_senders_beginning_to_the_receivers_end(tiny_workload: Workload) -> None:
    lanes = [NamedLane(name="a"), NamedLane(name="b")]
    tasks = message_tasks(tiny_workload, 2)
    sizes = message_sizes(tiny_workload)
    assert [task["bytes"] for task in tasks] == sizes
    seconds = {size: 1e-4 + size * 1e-9 for size in sizes}
    first = [{"moments": [n + (0 if n % 2 == 0 else seconds[t["bytes"]]) for n in range(8)]} for t in tasks]
    second = [{"moments": [n + (seconds[t["bytes"]] if n % 2 == 0 else 0) for n in range(8)]} for t in tasks]
    (table,) = build_messages(lanes, [LaunchResult(tasks, [first, second])] * 2)
    assert (table.kind, table.devices) == ("point_to_point", ["a", "b"])
    assert {point.bytes: point.seconds for point in table.points} == pytest.approx(seconds)


def test_sizes_reach_from_a_kilobyte_to_what_a_batch_hands_on(tiny_workload: Workload) -> None:
    widest = max(at(layer.output_elements, tiny_workload.sequence_length) for layer in tiny_workload.layers)
    sizes = message_sizes(tiny_workload)
    assert sizes[0] == 1024
    assert sizes[-1] >= 4 * widest * tiny_workload.global_batch


@pytest.mark.parametrize(
    ("lanes", "groups"),
    [(1, []), (2, [[0, 1]]), (3, [[0, 1, 2], [0, 1], [0, 2], [1, 2]]), (7, [[0, 1, 2, 3, 4, 5, 6]])],
)
def test_gradients_are_summed_over_all_lanes_and_while_they_are_few_over_every_pair(
    lanes: int, groups: list[list[int]]
) -> None:
    assert groups_of(lanes) == groups
