"""What-if sweeps: the grid, the best policy of each point, the recommendation, and mistakes by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import DEFAULTS, make_policy
from steelyard.policies.whatif import Vary, WhatIf, whatif
from steelyard.results.errors import InputError
from steelyard.sim.engine import objective_value, simulate
from steelyard.sim.spec import scenario_from

Document = dict[str, Any]


@pytest.fixture
def document(make_document: Callable[..., Document]) -> Document:
    return {**make_document(), "sampling": {"launches": 4, "steps": 4, "search_launches": 2}}


def test_every_point_has_the_best_policy_as_the_engine_says(document: Document) -> None:
    result = whatif(document, None, ["workload.global_batch=4,32"])
    for point, batch in zip(result.points, (4, 32), strict=True):
        changed = copy.deepcopy(document)
        changed["workload"]["global_batch"] = batch
        scenario = scenario_from(changed)
        values = {name: objective_value(scenario, make_policy(name), seed=7, launches=2) for name in DEFAULTS}
        assert point.settings == {"workload.global_batch": batch}
        assert point.objective_value == max(values.values())
        assert values[str(point.policy)] == point.objective_value
        summary = simulate(scenario, make_policy(str(point.policy))).summary
        assert point.throughput_samples_per_s == summary.throughput_samples_per_s
        assert point.gap_to_bound == summary.gap_to_bound
        assert point.step_time_s == {key: getattr(summary.step_time_s, key) for key in ("p10", "p50", "p90")}


def test_the_grid_is_full_and_in_order(document: Document) -> None:
    told: list[tuple[int, int]] = []
    result = whatif(
        document,
        None,
        ["workload.global_batch=8,16", "cluster.nodes.0.link.bandwidth_gb_per_s=1,2,4"],
        policies=["uniform"],
        progress=lambda done, of: told.append((done, of)),
    )
    assert [tuple(point.settings.values()) for point in result.points] == [
        (8, 1), (8, 2), (8, 4), (16, 1), (16, 2), (16, 4),
    ]  # fmt: skip
    assert told == [(number + 1, 6) for number in range(6)]


def test_the_document_is_json_and_not_changed(document: Document) -> None:
    before = copy.deepcopy(document)
    answer = whatif(document, None, ["workload.global_batch=8,32"], policies=["uniform", "makespan"]).document()
    assert document == before
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer["points"][answer["recommended_point"]]["settings"] == {"workload.global_batch": 32}
    assert "workload.global_batch = 32 with makespan" in answer["recommendation"]


def test_equal_calls_give_equal_answers(document: Document) -> None:
    calls = [whatif(document, None, ["workload.global_batch=8"], policies=["attention"], seed=5) for _ in range(2)]
    assert calls[0] == calls[1]
    assert calls[0] != whatif(document, None, ["workload.global_batch=8"], policies=["attention"], seed=6)


def _counted(document: Document) -> Document:
    """One entry of a node, to be counted."""
    changed = copy.deepcopy(document)
    node = changed["cluster"]["nodes"][0]
    node["devices"] = node["devices"][:1]
    changed["cluster"].pop("collectives")
    return changed


def test_the_count_of_a_device_can_be_varied(document: Document) -> None:
    result = whatif(_counted(document), None, ["cluster.nodes.0.devices.0.count=1,2,4"], policies=["uniform"])
    speeds = [point.throughput_samples_per_s or 0.0 for point in result.points]
    costs = [point.cost_usd_per_million_samples or 0.0 for point in result.points]
    assert speeds == sorted(speeds)
    assert speeds[2] > 1.5 * speeds[0]
    assert result.best == result.points[2]
    assert result.cheapest == result.points[costs.index(min(costs))]
    assert "USD per million samples" in result.recommendation


def test_a_device_that_is_only_named_can_be_counted(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = _counted(document)
    entry = changed["cluster"]["nodes"][0]["devices"][0]
    monkeypatch.setattr("steelyard.sim.spec._catalog_entry", lambda folder, name, field: entry)
    changed["cluster"]["nodes"][0]["devices"] = ["fast"]
    result = whatif(changed, None, ["cluster.nodes.0.devices.0.count=1,3"], policies=["uniform"])
    assert (result.points[0].throughput_samples_per_s or 0) < (result.points[1].throughput_samples_per_s or 0)


def test_a_point_without_a_plan_is_a_row_with_the_reason(document: Document) -> None:
    result = whatif(document, None, ["workload.global_batch=32,1000000"])
    assert result.points[0].infeasible is None
    assert "fit nowhere" in str(result.points[1].infeasible)
    assert result.points[1].throughput_samples_per_s is None
    assert result.best == result.points[0]
    nothing = whatif(document, None, ["workload.global_batch=1000000"])
    assert nothing.best is None
    assert nothing.document()["recommended_point"] is None
    assert "No point has a plan" in nothing.recommendation


@pytest.mark.parametrize("metric", ["throughput", "step_time_p90", "cost", "energy"])
def test_the_recommendation_follows_the_objective(metric: str, document: Document) -> None:
    result = whatif({**document, "objective": {"metric": metric}}, None, ["workload.global_batch=8,32"])
    assert result.best is not None
    assert result.best.objective_value == max(point.objective_value or 0.0 for point in result.points)
    assert result.recommendation.startswith("Take workload.global_batch = ")
    assert result.recommendation.count("\n") == 0


def test_lanes_are_filled_in_after_their_scenario_is_changed(document: Document) -> None:
    """A field of a measured lane exists only once the lanes are filled in; other fields are set before."""
    cluster = document["cluster"]
    seen: list[int] = []

    def resolve(raw: Document, folder: Path | None) -> Document:
        seen.append(raw["workload"]["global_batch"])
        return {**raw, "cluster": copy.deepcopy(cluster)}

    lanes = {**document, "cluster": {"lanes": "host"}}
    result = whatif(
        lanes,
        None,
        ["workload.global_batch=8,16", "cluster.nodes.0.link.latency_us=1,100"],
        policies=["uniform"],
        resolve=resolve,
    )
    assert len(result.points) == 4
    assert set(seen) == {8, 16}
    with pytest.raises(InputError, match=r"cluster\.nodes\.7\.link\.latency_us: does not exist"):
        whatif(lanes, None, ["cluster.nodes.7.link.latency_us=1"], resolve=resolve)


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ([], "is missing"),
        (["workload.global_batch"], "not path=value"),
        (["workload.global_batch="], "not path=value"),
        (["=1,2"], "not path=value"),
        (["workload.global_batch=1", "workload.global_batch=2"], "given twice"),
        (["objective.metric=cost,throughput"], "compare"),
        (["workload.globl_batch=1,2"], "did you mean global_batch"),
        (["nonsense.deep.path=1"], "nonsense"),
        (["cluster.nodes.5.count=1,2"], "does not exist"),
        (["cluster.nodes.0.devices.0.cuont=1,2"], "cuont"),
        (["cluster.nodes.0.devices.zero.count=2"], "does not exist"),
        (["workload.global_batch.inner=1"], "not a table"),
        (["workload.global_batch=8,0"], "global_batch"),
        (["workload.global_batch=8,many"], "global_batch"),
        (["workload.global_batch=2020-01-01"], "global_batch"),
        (["workload.dtype=fp32,fp31"], "dtype"),
        (
            [f"seed={','.join(map(str, range(101)))}", f"workload.global_batch={','.join(map(str, range(1, 101)))}"],
            "10100 points",
        ),
    ],
)
def test_mistakes_are_named(vary: list[str], said: str, document: Document) -> None:
    with pytest.raises(InputError, match=said) as caught:
        whatif(document, None, vary, policies=["uniform"])
    assert "\n" not in str(caught.value)


def test_an_unknown_policy_is_named(document: Document) -> None:
    with pytest.raises(InputError, match="did you mean uniform"):
        whatif(document, None, ["workload.global_batch=8"], policies=["unifrom"])
    with pytest.raises(InputError, match="are none"):
        whatif(document, None, ["workload.global_batch=8"], policies=[])


def test_values_are_toml_or_words() -> None:
    assert Vary.parse("a.b=1,2.5,4") == Vary("a.b", ("1", "2.5", "4"))
    assert Vary.parse("a=fp32, bf16") == Vary("a", ("fp32", "bf16"))
    assert Vary.parse('a="x,y",true') == Vary("a", ('"x,y"', "true"))
    assert Vary.parse("a=[1,2],[3]") == Vary("a", ("[1, 2]", "[3]"))


def test_an_empty_sweep_recommends_nothing() -> None:
    assert WhatIf("throughput", ()).recommendation == "No point has a plan: there are none."
