"""Runs whose devices slow down, drift, go and come back: exact in small worlds, honest about what changes cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.errors import InputError
from steelyard.results.record import LEDGER_LINES
from steelyard.results.store import FILES, read_run, write_run
from steelyard.sim import adaptive, engine
from steelyard.sim.device import CollectivePoint, CollectiveTable, Lane
from steelyard.sim.disturbances import Disturbance, Rebalance, disturbed, factors_at, gone_at
from steelyard.sim.plan import Pipeline, Plan, PlanError, Replica, Stage
from steelyard.sim.spec import Sampling, Scenario, Variation, scenario_from
from steelyard.sim.view import Fixed, View

STEPS = 20
RULES = Rebalance(every_steps=4, at_most=5, pause_s=0.5, restart_s=7.0)


@dataclass(frozen=True)
class Script:
    """A policy that gives certain splits in certain steps, and the last one in between; it notes what it saw."""

    name: ClassVar[str] = "script"
    adaptive: ClassVar[bool] = True
    splits: dict[int, dict[str, int]]
    seen: list[View] = field(default_factory=list)

    def allocate(self, view: View) -> Plan:
        self.seen.append(view)
        step = STEPS - (view.steps_left or 0)
        alive = {device.name for device in view.devices}
        split = self.splits[max(each for each in self.splits if each <= step)]
        kept = {name: count for name, count in split.items() if name in alive}
        first = next(iter(kept))
        return Plan.data_parallel(view.workload, {**kept, first: view.global_batch - sum(kept.values()) + kept[first]})


@dataclass(frozen=True)
class Still(Script):
    """The same, without a wish to be asked again."""

    adaptive: ClassVar[bool] = False


def world(build: Any, events: Sequence[dict[str, Any]] = (), *, devices: int = 2, **changes: Any) -> Scenario:
    """Devices on which a sample takes 1 s forward and 2 s backward; 6 samples a step; parameters of 8 bytes each."""
    made = [build.device(f"d{number}", [1.0], [2.0]) for number in range(devices)]
    given = {"disturbances": [Disturbance(**each) for each in events], "rebalance": RULES, **changes}
    return build.scenario(made, batch=6, sampling=Sampling(steps=STEPS, launches=1), **given)  # type: ignore[no-any-return]


def total_s(scenario: Scenario, policy: Any) -> float:
    (course,) = adaptive.run_courses(scenario, policy, seed=0, launches=1)
    return course.ends[-1]


def test_what_nobody_disturbs_runs_as_any_other_scenario(build: Any) -> None:
    policy = make_policy("makespan")
    plain = engine.simulate(world(build, rebalance=None), policy).summary
    asked = engine.simulate(world(build), policy)
    assert asked.summary.step_time_s.mean == pytest.approx(plain.step_time_s.mean, rel=1e-12)
    assert asked.summary.throughput_samples_per_s == pytest.approx(plain.throughput_samples_per_s, rel=1e-12)
    assert [each["why"] for each in asked.decisions] == ["start"]


@given(data=st.data())
def test_a_device_alone_takes_what_its_factors_say(build: Any, data: st.DataObject) -> None:
    """One device, 18 s a step: the run takes the sum of 18 s times the factor of each step, whatever happens when."""
    factor = st.floats(0.25, 4.0)
    events = []
    for _ in range(data.draw(st.integers(1, 3))):
        kind, start = data.draw(st.sampled_from(["slowdown", "drift"])), data.draw(st.integers(0, STEPS))
        until = start + data.draw(st.integers(1, STEPS))
        events.append(
            {"kind": kind, "device": "d0", "from_step": start, "until_step": until, "factor": data.draw(factor)}
        )
    scenario = world(build, events, devices=1)
    expected = sum(18 * factors_at(scenario.disturbances, step).get("d0", 1.0) for step in range(STEPS))
    assert total_s(scenario, make_policy("uniform")) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("torch_device", ["cpu", "cuda:0", None])
def test_a_slowed_processor_is_slower_in_collectives_too(build: Any, torch_device: str | None) -> None:
    """1000 parameters over 1 KB/s: the all-reduce, of which a lane's processor does its part, takes 3 times as long."""
    slowdown = {"kind": "slowdown", "device": "d0", "from_step": 5, "factor": 3.0}
    scenario = world(build, [slowdown], parameters=1000, gb_per_s=1e-6)
    if torch_device is not None:
        lane = Lane(torch_device=torch_device)
        nodes = [
            node.model_copy(update={"devices": [each.model_copy(update={"lane": lane}) for each in node.devices]})
            for node in scenario.cluster.nodes
        ]
        scenario = scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})
    (course,) = adaptive.run_courses(scenario, make_policy("uniform"), seed=0, launches=1)
    before, after = (course.ends[step + 1] - course.ends[step] for step in (2, 8))
    all_reduce_s = before - 9
    assert all_reduce_s > 1
    assert after == pytest.approx(27 + all_reduce_s * (3 if torch_device == "cpu" else 1))


SETS = st.sampled_from([["d0", "d1", "d2", "d3"], ["d0", "d1"], ["d1", "d3"], ["d0", "d2", "d3"]])


@given(factors=st.lists(st.floats(1.0, 5.0), min_size=4, max_size=4), used=SETS, measured=st.booleans())
@pytest.mark.parametrize("torch_device", ["cpu", "cuda:0"])
def test_whoever_plans_for_slow_lanes_sees_what_the_engine_runs(
    build: Any, factors: list[float], used: list[str], measured: bool, torch_device: str
) -> None:
    """Lanes slow from step 5 on: steps take what they take on the cluster that policies and optima are shown.

    Whoever takes part, with a table over all lanes and one pair, or with none: a slow lane that is left out slows none.
    """
    names = ["d0", "d1", "d2", "d3"]
    own = dict(zip(names, factors, strict=True))
    events = [{"kind": "slowdown", "device": name, "from_step": 5, "factor": own[name]} for name in names]
    scenario = world(build, events, devices=4, parameters=1000, gb_per_s=1e-6)
    points = [CollectivePoint(bytes=1, seconds=2), CollectivePoint(bytes=9, seconds=2)]
    tables = [CollectiveTable(backend="gloo", devices=each, points=points) for each in (names, names[:2])]
    lane = Lane(torch_device=torch_device)
    nodes = [
        node.model_copy(update={"devices": [each.model_copy(update={"lane": lane}) for each in node.devices]})
        for node in scenario.cluster.nodes
    ]
    cluster = scenario.cluster.model_copy(update={"nodes": nodes, "collectives": tables if measured else []})
    scenario = scenario.model_copy(update={"cluster": cluster})
    policy = Script({0: dict.fromkeys(used, 6 // len(used))})
    (course,) = adaptive.run_courses(scenario, policy, seed=0, launches=1)
    there = disturbed(cluster, own)
    assert View.of(scenario).slowed(own).cluster == there
    still = scenario.model_copy(update={"cluster": there, "disturbances": [], "rebalance": None})
    plan = Plan.data_parallel(scenario.workload, course.plans[0][0].samples())
    step_s = engine.simulate(still, Fixed(plan)).summary.step_time_s.mean
    assert course.ends[8] - course.ends[7] == pytest.approx(step_s, rel=1e-9)
    assert disturbed(cluster, dict.fromkeys(names, 1.0)) is cluster


def test_a_drift_grows_by_equal_steps_and_stays() -> None:
    drift = Disturbance(kind="drift", device="d", from_step=2, until_step=5, factor=3.0)
    assert [drift.factor_at(step) for step in range(8)] == pytest.approx([1, 1, 1.5, 2, 2.5, 3, 3, 3])


def test_a_change_of_batch_sizes_costs_the_pause_alone(build: Any) -> None:
    """Everybody finishes the step: 3 samples, 9 s; then the pause; then steps of 4 samples, 12 s."""
    policy = Script({0: {"d0": 3, "d1": 3}, 8: {"d0": 2, "d1": 4}})
    run = engine.simulate(world(build), policy)
    (change,) = [each for each in run.decisions if each["changed"] and each["why"] == "asked"]
    assert (change["step"], change["price_s"]) == (8, pytest.approx(0.5))
    assert run.summary.step_time_s.mean * (STEPS - 1) == pytest.approx(7 * 9 + 12 * 12 + 0.5)
    for line in run.summary.devices.values():
        assert line.rebalance_s * (STEPS - 1) == pytest.approx(0.5)


def test_a_device_that_joins_pays_for_its_states_and_the_restart(build: Any) -> None:
    """1000 parameters in fp32 with plain SGD are 4,000 bytes; over 1 KB/s that is 4 s."""
    policy = Script({0: {"d0": 6}, 8: {"d0": 3, "d1": 3}})
    run = engine.simulate(world(build, parameters=1000, gb_per_s=1e-6), policy)
    change = run.decisions[-1] if run.decisions[-1]["changed"] else next(e for e in run.decisions[::-1] if e["changed"])
    assert change["price"]["moved_bytes"] == 4000
    assert change["price"]["moving_s"] == pytest.approx(4.0)
    assert change["price_s"] == pytest.approx(0.5 + 7.0 + 4.0)
    assert run.summary.devices["d1"].rebalance_s * (STEPS - 1) == pytest.approx(11.5)


def test_a_loss_costs_the_step_under_way_and_a_forced_change(build: Any) -> None:
    """Steps 0-4 take 9 s, step 5 is done in vain, then the price, then 15 steps of 18 s; nobody works who is gone."""
    policy = Still({0: {"d0": 3, "d1": 3}})
    run = engine.simulate(world(build, [{"kind": "loss", "device": "d1", "from_step": 5}]), policy)
    assert len(policy.seen) == 2
    start, loss = run.decisions
    assert (loss["why"], loss["step"], loss["lost_s"], loss["price_s"]) == ("loss", 5, pytest.approx(9), 7.5)
    assert run.summary.step_time_s.mean * (STEPS - 1) == pytest.approx(4 * 9 + 9 + 7.5 + 15 * 18)
    mine = run.events[(run.events["device"] == "d1") & (run.events["kind"] != "rebalance")]
    assert mine["step"].max() == 4
    assert start["plan_sha256"] != loss["plan_sha256"]


def _servers(events: list[dict[str, Any]]) -> Scenario:
    nodes = [
        {"name": name, "link": "nvlink-2", "devices": [{"device": "nvidia-v100-sxm-32gb", "name": name, "count": 2}]}
        for name in ("old", "older")
    ]
    workload = {"model": "bert-base", "global_batch": 64, "sequence_length": 128, "dtype": "fp16"}
    document = {"name": "servers", "cluster": {"network": "ethernet-100g", "nodes": nodes}, "workload": workload}
    return scenario_from({**document, "disturbances": events, "sampling": {"steps": STEPS, "launches": 1}})


def test_a_machine_is_lost_with_all_its_devices_in_one_event() -> None:
    """One step in vain and one forced change, not one for each device; and all of it comes back at once."""
    events = [
        {"kind": "loss", "machine": "older", "from_step": 4},
        {"kind": "return", "machine": "older", "from_step": 7},
    ]
    scenario = _servers(events)
    assert [(each.kind, each.device) for each in scenario.disturbances] == [
        ("loss", "older-0"), ("loss", "older-1"), ("return", "older-0"), ("return", "older-1"),
    ]  # fmt: skip
    run = engine.simulate(scenario, make_policy("uniform"))
    assert [(each["why"], each["step"]) for each in run.decisions] == [("start", 0), ("loss", 4)]
    assert scenario_from(scenario.model_dump(mode="json")) == scenario


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({"machine": "new"}, "disturbances.0.machine 'new' is no machine of the cluster"),
        ({"machine": 7}, "disturbances.0.machine 7 is no machine of the cluster"),
        ({"machine": "old", "device": "old-0"}, "disturbances.0.device stands beside a machine"),
    ],
)
def test_a_wrong_machine_is_named_by_its_path(event: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as found:
        _servers([{"kind": "loss", "from_step": 3, **event}])
    assert problem in str(found.value).replace(": ", " ")


def test_a_loss_of_a_device_that_does_nothing_changes_nothing(build: Any) -> None:
    policy = Still({0: {"d0": 6}})
    events = [{"kind": "loss", "device": "d1", "from_step": 5}]
    assert total_s(world(build, events), policy) == pytest.approx(STEPS * 18)
    assert len(policy.seen) == 1


def test_states_that_nobody_holds_come_from_storage(build: Any) -> None:
    """The second of two stages is lost: its 500 parameters are 2,000 bytes."""
    devices = [build.device(f"d{number}", [1.0, 1.0], [1.0, 1.0]) for number in range(3)]
    scenario = build.scenario(devices, batch=6, parameters=[100, 500], rebalance=RULES)
    pipes = [Plan(pipelines=[build.pipeline([0, 1, 2], ["d0", other], [3, 3])]) for other in ("d1", "d2")]
    view = dataclasses.replace(View.of(scenario, gone={"d1"}), current=pipes[0], storage_bytes_per_s=1000.0)
    change = view.change_to(pipes[1])
    assert (change.moved_bytes, change.restored_bytes) == (0, 2000)
    assert change.seconds == pytest.approx(0.5 + 7.0 + 2.0)


@given(zero=st.integers(0, 3), degree=st.sampled_from([1, 2]), data=st.data())
def test_every_device_gets_exactly_what_it_lacks(build: Any, zero: int, degree: int, data: st.DataObject) -> None:
    """Bytes moved and restored are what the new holders need less what they have; going nowhere moves nothing."""
    devices = [build.device(f"d{number}", [1.0] * 4, [1.0] * 4) for number in range(4)]
    scenario = build.scenario(devices, batch=4, parameters=[8, 16, 24, 32])

    def drawn(name: str) -> Plan:
        names = data.draw(st.permutations([f"d{number}" for number in range(4)]), label=name)
        groups = [list(names[start : start + degree]) for start in range(0, 4, degree)]
        cut = data.draw(st.integers(1, 3))
        stages = [
            [Stage(first=0, last=4, replicas=[Replica(devices=group)])] for group in groups
        ] if data.draw(st.booleans()) else [
            [
                Stage(first=0, last=cut, replicas=[Replica(devices=groups[0])]),
                Stage(first=cut, last=4, replicas=[Replica(devices=groups[1])]),
            ]
        ]  # fmt: skip
        pipelines = [Pipeline(stages=each, micro_batches=[1]) for each in stages]
        return Plan(pipelines=pipelines, zero=zero)

    old, new = drawn("old"), drawn("new")
    view = dataclasses.replace(View.of(scenario), current=old, rebalance=RULES)
    assert view.price_s(old) == 0.0
    change = view.change_to(new)
    lacking = sum(_lacking(scenario, old, new, f"d{number}") for number in range(4))
    assert change.moved_bytes == pytest.approx(lacking, abs=1e-6)
    assert change.restored_bytes == pytest.approx(0.0, abs=1e-6)


def _lacking(scenario: Scenario, old: Plan, new: Plan, name: str) -> float:
    """Bytes of weights (SGD has no states) that a device needs and does not have, layer by layer on a fine grid."""
    grid, total = 240, 0.0
    for layer, parameters in enumerate(each.parameters for each in scenario.workload.layers):
        had, wanted = (_cells(plan, layer, name, grid) for plan in (old, new))
        total += 4 * parameters * len(wanted - had) / grid
    return total


def _cells(plan: Plan, layer: int, name: str, grid: int) -> set[int]:
    """Which cells of a layer's weights a device holds."""
    holders = [
        replica.devices
        for pipeline in plan.normalize().pipelines
        for stage in pipeline.stages
        if stage.first <= layer < stage.last
        for replica in stage.replicas
    ]
    for place, group in enumerate(holders):
        if name in group:
            width = grid // len(group)
            cells = [group.index(name) * width + cell for cell in range(width)]
            part = width // len(holders)
            return set(cells[place * part : (place + 1) * part] if plan.zero == 3 else cells)
    return set()


def test_a_policy_sees_the_past_and_never_the_future(build: Any) -> None:
    """A loss in the very step of a question is not foreseen; the history grows; times are those that were."""
    events = [
        {"kind": "slowdown", "device": "d0", "from_step": 2, "factor": 2.0},
        {"kind": "loss", "device": "d1", "from_step": 8},
        {"kind": "return", "device": "d1", "from_step": 14},
    ]
    policy = Script({0: {"d0": 3, "d1": 3}})
    run = engine.simulate(world(build, events), policy)
    steps = [(STEPS - (view.steps_left or 0), len(view.devices), len(view.history)) for view in policy.seen]
    assert steps == [(0, 2, 0), (4, 2, 4), (8, 1, 8), (12, 1, 12), (16, 2, 16)]
    assert [each["step"] for each in run.decisions] == [0, 4, 8, 12, 16]
    last = policy.seen[-1].history
    assert [entry["step"] for entry in last] == list(range(16))
    assert last[0]["devices"]["d0"] == {"samples": 3, "compute_s": pytest.approx(9.0), "wait_s": pytest.approx(0.0)}
    assert last[3]["devices"]["d0"]["compute_s"] == pytest.approx(18.0)
    assert last[3]["devices"]["d1"]["wait_s"] == pytest.approx(9.0)
    assert last[3]["step_s"] == pytest.approx(18.0)
    assert set(last[9]["devices"]) == {"d0"}
    assert all(entry["plan_sha256"] in policy.seen[-1].plans for entry in last)


def test_there_are_only_so_many_changes(build: Any) -> None:
    policy = Script({step: {"d0": 1 + step // 4 % 2, "d1": 5 - step // 4 % 2} for step in range(0, STEPS, 4)})
    rules = RULES.model_copy(update={"at_most": 2})
    run = engine.simulate(world(build, rebalance=rules), policy)
    assert [each["step"] for each in run.decisions if each["changed"]] == [0, 4, 8]
    assert len(policy.seen) == 3


def test_a_lost_device_in_a_plan_is_an_error(build: Any) -> None:
    scenario = world(build, [{"kind": "loss", "device": "d1", "from_step": 5}])
    plan = Plan.data_parallel(scenario.workload, {"d0": 3, "d1": 3})
    with pytest.raises(PlanError, match="'d1' is no device of the cluster"):
        engine.simulate(scenario, Fixed(plan))


def test_local_sgd_is_refused(build: Any) -> None:
    scenario = world(build)
    plan = Plan.data_parallel(scenario.workload, {"d0": 3, "d1": 3}).model_copy(update={"sync_every": 2})
    with pytest.raises(PlanError, match="sync_every"):
        engine.simulate(scenario, Fixed(plan))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_equal_runs_have_equal_bytes_and_ledgers_that_sum(build: Any, tmp_path: Path, noise: float) -> None:
    events = [
        {"kind": "drift", "device": "d0", "from_step": 3, "until_step": 9, "factor": 2.0},
        {"kind": "loss", "device": "d1", "from_step": 13},
    ]
    changes = {"variation": Variation(step_cv=noise, network_cv=noise), "outputs": 5.0, "gb_per_s": 1e-6}
    scenario = world(build, events, devices=3, **changes)
    scenario = scenario.model_copy(update={"sampling": Sampling(steps=STEPS, launches=3)})
    folders = [write_run(engine.simulate(scenario, make_policy("lb-bsp")), tmp_path / name) for name in ("a", "b")]
    for name in FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    run = read_run(folders[0])
    assert {each["launch"] for each in run.decisions} == ({0, 1, 2} if noise else {0})
    for line in run.summary.devices.values():
        assert sum(getattr(line, each) for each in LEDGER_LINES) == pytest.approx(run.summary.step_time_s.mean)
    assert run.summary.throughput_samples_per_s == pytest.approx(6 / run.summary.step_time_s.mean)


def test_the_noise_of_a_step_does_not_depend_on_what_was_decided_before(build: Any) -> None:
    """Asked or not, changed to the same split or not at all: the last steps are equal to a rounding."""
    scenario = world(build, variation=Variation(step_cv=0.2))
    same = Script({0: {"d0": 3, "d1": 3}})
    there_and_back = Script({0: {"d0": 3, "d1": 3}, 4: {"d0": 2, "d1": 4}, 8: {"d0": 3, "d1": 3}})
    ends = [adaptive.run_courses(scenario, each, seed=3, launches=1)[0].ends for each in (same, there_and_back)]
    last = [each[-1] - each[-8] for each in ends]
    assert last[0] == pytest.approx(last[1], rel=1e-9)


def test_a_slowed_view_is_slower_by_that_and_nothing_else(build: Any) -> None:
    view = View.of(world(build))
    slow = view.slowed({"d1": 2.5})
    for before, after, factor in zip(view.devices, slow.devices, (1.0, 2.5), strict=True):
        for samples in range(1, 7):
            assert after.step_s(samples) == pytest.approx(factor * before.step_s(samples))
    assert slow.cluster.by_name["d1"].slowdown == 2.5
    assert view.slowed({}).devices == view.devices


@given(st.lists(st.tuples(st.sampled_from(["loss", "return"]), st.integers(1, 9)), max_size=6))
def test_who_is_gone_follows_from_the_last_word(events: list[tuple[str, int]]) -> None:
    made = [Disturbance(kind=kind, device="d", from_step=step) for kind, step in events]  # type: ignore[arg-type]
    for step in range(10):
        words = [each for each in sorted(made, key=lambda each: each.from_step) if each.from_step <= step]
        assert gone_at(made, step) == (frozenset("d") if words and words[-1].kind == "loss" else frozenset())


@pytest.mark.parametrize(
    ("event", "path", "problem"),
    [
        ({"kind": "slowdown", "device": "no", "from_step": 1, "factor": 2.0}, "disturbances.0.device", "no device"),
        ({"kind": "slowdown", "device": "fast", "from_step": 1, "factor": 0.0}, "disturbances.0.factor", "greater"),
        ({"kind": "slowdown", "device": "fast", "from_step": 1, "factor": -2.0}, "disturbances.0.factor", "greater"),
        ({"kind": "slowdown", "device": "fast", "from_step": -1, "factor": 2.0}, "disturbances.0.from_step", "least 0"),
        ({"kind": "slowdown", "device": "fast", "from_step": 1}, "disturbances.0", "no factor"),
        ({"kind": "drift", "device": "fast", "from_step": 1, "factor": 2.0}, "disturbances.0", "no until_step"),
        (
            {"kind": "drift", "device": "fast", "from_step": 5, "until_step": 5, "factor": 2.0},
            "disturbances.0",
            "not after",
        ),
        ({"kind": "loss", "device": "fast", "from_step": 0}, "disturbances.0.from_step", "begins"),
        ({"kind": "loss", "device": "fast", "from_step": 1, "factor": 2.0}, "disturbances.0", "leave them out"),
        ({"kind": "return", "device": "fast", "from_step": 1}, "disturbances.0.device", "not lost before"),
        ({"kind": "melt", "device": "fast", "from_step": 1}, "disturbances.0.kind", "'slowdown'"),
    ],
)
def test_a_wrong_disturbance_is_named_by_its_path(
    make_document: Any, event: dict[str, Any], path: str, problem: str
) -> None:
    document = make_document(noisy=False)
    document["disturbances"] = [event]
    with pytest.raises(InputError) as caught:
        scenario_from(document)
    assert caught.value.path == path
    assert problem in str(caught.value)
    assert caught.value.mend


def test_somebody_must_be_left(make_document: Any) -> None:
    document = make_document(noisy=False)
    document["disturbances"] = [{"kind": "loss", "device": name, "from_step": 3} for name in ("fast", "slow")]
    with pytest.raises(InputError, match="no device is left"):
        scenario_from(document)


def test_a_search_maximises_what_the_whole_run_gives(build: Any) -> None:
    scenario = world(build, [{"kind": "slowdown", "device": "d0", "from_step": 6, "factor": 2.0}])
    for name in ("makespan", "lb-bsp"):
        value = engine.objective_value(scenario, make_policy(name), seed=0, launches=1)
        assert value == engine.simulate(scenario, make_policy(name)).summary.throughput_samples_per_s
