"""Operators attend to devices: known rules as special cases, masks, heads, rounds, and the contract."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.policies import attention_operators, policy_from_text
from steelyard.policies._base import canonical
from steelyard.policies.attention_operators import AttentionOperators
from steelyard.policies.graphs import placed, tasks_of
from steelyard.policies.operator_keys import FEATURES, KEYS, OperatorKeys, Placing, Sight
from steelyard.policies.tasks import NoRoomError, Tasks, Timetable
from steelyard.policies.testing import scenarios
from steelyard.sim.estimate import step_s
from steelyard.sim.plan import Infeasible, Plan, micro_batches
from steelyard.sim.spec import Scenario, load_scenario, scenario_from
from steelyard.sim.view import View

ALONE = partial(AttentionOperators, finish=0.0, ahead=0.0, load=0.0, heads=1, rounds=1)
"""One walk, with no weight but what is named."""


@pytest.fixture(scope="module")
def towers() -> Scenario:
    return load_scenario("two-towers")


def answer(policy: Any, view: View) -> Plan | str:
    """The plan, or the refusal."""
    try:
        return policy.allocate(view)  # type: ignore[no-any-return]
    except Infeasible as error:
        return str(error)


def appending(tasks: Tasks) -> Timetable:
    """HEFT without its gaps."""
    table = Timetable(tasks)
    for task in sorted(range(tasks.count), key=lambda each: (-tasks.upward_ranks[each], each)):
        starts = {device: table.after_all_s(task, device) for device in table.fitting(task)}
        device = min(starts, key=lambda each: (starts[each] + tasks.seconds[task][each], each))
        table.put(task, device, starts[device])
    return table


# Known rules are special cases


@settings(max_examples=80)
@given(scenarios(), st.floats(0.1, 4.0))
def test_the_earliest_finish_alone_is_heft(scenario: Scenario, weight: float) -> None:
    view = View.of(scenario)
    assert answer(ALONE(finish=weight), view) == answer(policy_from_text("heft"), view)


@settings(max_examples=80)
@given(scenarios())
def test_without_gaps_it_is_heft_without_insertion(scenario: Scenario) -> None:
    view = View.of(scenario)
    try:
        expected: Plan | str = placed(view, appending)
    except Infeasible as error:
        expected = str(error)
    assert answer(ALONE(finish=1.0, gaps=False), view) == expected


@settings(max_examples=80)
@given(scenarios())
def test_the_earliest_start_of_all_that_can_go_is_m_etf(scenario: Scenario) -> None:
    view = View.of(scenario)
    found = ALONE(start=1.0, rank=0.0, order="ready", gaps=False)
    assert answer(found, view) == answer(policy_from_text("m-etf"), view)


def test_the_speed_alone_is_the_fastest_device_for_each(towers: Scenario) -> None:
    plan = ALONE(speed=1.0).allocate(View.of(towers))
    assert plan.pipelines[0].devices == ["rtx-4090"]


def test_a_shipped_scenario_tells_them_apart(towers: Scenario) -> None:
    view = View.of(towers)
    texts = ["heft", "m-etf", "m-topo", "place-single", "attention-operators", "attention-layers"]
    assert len({policy_from_text(text).allocate(view).sha256 for text in texts}) == len(texts)


# What it sees


def graph(sizes: tuple[float, ...] = (0.0,) * 4, room: tuple[float, ...] = (math.inf,) * 2, pieces: int = 1) -> Tasks:
    """A fork: 0 feeds 1 and 2, which feed 3; the second device takes twice as long; a message takes 3 s."""
    return Tasks(
        seconds=[[1.0, 2.0], [2.0, 4.0], [4.0, 8.0], [1.0, 2.0]],
        inputs=[[], [0], [0], [1, 2]],
        transfer_s=lambda *_: 3.0,
        mean_transfer_s=lambda *_: 3.0,
        sizes=sizes,
        room=room,
        pieces=pieces,
    )


def test_the_way_ahead_is_the_optimistic_one() -> None:
    """Behind the join nothing; behind a branch the join: 1 s there, or 2 s; behind the fork a branch."""
    way = OperatorKeys(graph()).expected(2)
    assert way.behind.tolist() == [[5.0, 8.0], [1.0, 2.0], [1.0, 2.0], [0.0, 0.0]]
    assert list(way.ranks) == graph().upward_ranks
    assert OperatorKeys(graph()).expected(1).behind[0].tolist() == [5.0, 8.0]


def test_the_next_round_knows_where_the_readers_are() -> None:
    keys, table = OperatorKeys(graph()), Timetable(graph())
    for task, device in enumerate((0, 1, 0, 0)):
        table.put(task, device, table.after_all_s(task, device))
    way = keys.known(table)
    assert way.behind[1].tolist() == [1.0, 4.0]
    assert way.ranks == [1 + 3 + 4 + 3 + 1, 4 + 3 + 1, 4 + 1, 1]
    assert way.behind[0].tolist() == [3 + 8, max(8, 3 + 5)]


def test_keys_of_a_device_that_has_begun() -> None:
    keys, placing = OperatorKeys(graph(pieces=2)), Placing(graph(pieces=2))
    placing.put(0, 0, 0.0)
    sight = Sight(keys, placing, [1, 2], keys.expected(2), gaps=False)
    assert sight.starts.tolist() == [[1.0, 4.0], [1.0, 4.0]]
    values = {key: sight.key(key) for key in KEYS}
    assert values["start"] == pytest.approx(-np.log1p(np.array([[0, 3], [0, 3]]) / 2))
    assert values["finish"] == pytest.approx(-np.log1p(np.array([[0, 5], [2, 9]]) / 2))
    assert values["ahead"] == pytest.approx(-np.log1p(np.array([[0, 6], [2, 10]]) / 2))
    assert values["speed"] == pytest.approx(np.log([[2, 1], [2, 1]]) - math.log(2) / 2)
    assert values["moved"] == pytest.approx(-np.log1p(np.array([[0, 3], [0, 3]]) / 2))
    assert values["load"] == pytest.approx(-0.5 * np.log1p(np.array([[3, 4], [5, 8]]) / 4))
    assert (values["memory"] == 0).all(), "there is no limit"
    assert values["rank"][1].tolist() == [0.0, 0.0], "the longer branch is first"
    assert (values["rank"][0] < 0).all()


def test_what_is_full_or_out_of_reach_is_masked() -> None:
    far = Tasks(**{**vars(graph(room=(4.0, 1.0), sizes=(2.0, 2.0, 1.0, 1.0))), "transfer_s": lambda *_: math.inf})
    keys, placing = OperatorKeys(far), Placing(far)
    assert Sight(keys, placing, [0], keys.expected(2), gaps=True).open.tolist() == [[True, False]]
    placing.put(0, 0, 0.0)
    sight = Sight(keys, placing, [1, 2], keys.expected(2), gaps=True)
    assert sight.open.tolist() == [[True, False], [True, False]]
    assert all(np.isfinite(sight.key(key)).all() for key in KEYS)
    assert sight.key("memory")[:, 0] == pytest.approx([math.log(1e-3), math.log(1 / 4)])
    assert (sight.scores(np.ones((2, len(KEYS))))[:, 1] == -math.inf).all()


def test_queries_are_made_of_features() -> None:
    policy = AttentionOperators(speed=0.5, urgent=0.25, large=-1.0, talkative=2.0)
    query = policy.query
    assert query.shape == (len(FEATURES), len(KEYS))
    assert query[:, KEYS.index("speed")].tolist() == [0.5, 0.25, -1.0, 0.0]
    assert query[:, KEYS.index("moved")].tolist() == [0.0, 0.0, 0.0, 2.0]
    features = OperatorKeys(graph()).features
    assert features[:, FEATURES.index("urgency")].tolist() == pytest.approx([0, math.log(13 / 16), 0, 0], abs=0.1)
    assert features[:, FEATURES.index("work")].argmax() == 2
    assert (features[:, FEATURES.index("volume")] > 0).all()


# Heads and rounds


def test_heads_see_fewer_devices_and_then_draw(towers: Scenario) -> None:
    policy, view = AttentionOperators(heads=5), View.of(towers)
    assert [tuple(look) for look in policy._looks(view)] == [(2, None), (1, None), (2, 0), (2, 1), (2, 2)]
    assert [tuple(look) for look in AttentionOperators(heads=1)._looks(view)] == [(2, None)]


def test_large_graphs_have_fewer_heads(towers: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    view = View.of(towers)
    monkeypatch.setattr(attention_operators, "LOOKS", 3 * 2 * 2 * len(towers.workload.layers) + 1)
    assert len(list(AttentionOperators(heads=16, rounds=2)._looks(view))) == 3
    monkeypatch.setattr(attention_operators, "LOOKS", 1)
    assert len(list(AttentionOperators(heads=16, rounds=2)._looks(view))) == 1


@settings(max_examples=60)
@given(scenarios())
def test_more_heads_and_rounds_are_no_slower(scenario: Scenario) -> None:
    """By the timetable, of which the best few are estimated."""
    view = canonical(View.of(scenario))
    tasks = tasks_of(view, "gpipe", micro_batches(view.global_batch, view.workload.max_micro_batch))
    found = []
    for rounds in (1, 2, 4):
        walks = attention_operators._Walks(AttentionOperators(rounds=rounds), view.seed)
        try:
            found.append(walks.placed(attention_operators.Look(len(view.devices)), tasks).step_s)
        except NoRoomError:
            return
    assert found == sorted(found, reverse=True)


def test_heads_make_a_step_shorter(towers: Scenario) -> None:
    view = View.of(towers)
    one, many = (step_s(view, AttentionOperators(heads=heads).allocate(view)) for heads in (1, 16))
    assert many <= one


def test_draws_are_the_seeds() -> None:
    """Equal views get equal plans; other draws find other placements."""
    scenario = load_scenario("two-towers")
    walks = [attention_operators._Walks(AttentionOperators(temperature=1.0), seed) for seed in (0, 0, 1)]
    view = canonical(View.of(scenario))
    tasks = tasks_of(view, "gpipe", [view.global_batch])
    found = [[each.placed(attention_operators.Look(2, n), tasks).device for n in range(3)] for each in walks]
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert found[0][0] != found[0][1]


# Memory


def test_a_full_device_sends_operators_elsewhere(towers: Scenario) -> None:
    document = towers.model_dump(mode="json")
    for device in document["cluster"]["nodes"][0]["devices"]:
        device["memory_gib"] = 6.0
    scenario = scenario_from(document)
    plan = AttentionOperators().allocate(View.of(scenario))
    plan.check(scenario)
    assert len(plan.pipelines[0].devices) == 2
    for device in document["cluster"]["nodes"][0]["devices"]:
        device["memory_gib"] = 1.0
    with pytest.raises(Infeasible, match="fits on no device beside"):
        AttentionOperators().allocate(View.of(scenario_from(document)))
