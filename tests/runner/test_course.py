"""Runs whose plan changes under way, on real lanes: nothing is lost, nothing repeated, and it is all in the record."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import pytest
from steelyard.policies import make_policy
from steelyard.results.compare import compare
from steelyard.results.errors import InputError
from steelyard.results.store import find_runs, read_run
from steelyard.runner.course import Course, refuse_disturbances, run_course
from steelyard.runner.courses import foretold
from steelyard.runner.followed import Followed, circumstances, slowing_notes
from steelyard.runner.isolation.capabilities import this_host
from steelyard.runner.launch import LaunchResult
from steelyard.runner.live import Planned, Task
from steelyard.runner.protocol import Measurement
from steelyard.runner.replay import replay
from steelyard.runner.resolving import job_of
from steelyard.runner.runnable import lanes_of
from steelyard.runner.unfinished import recover
from steelyard.sim.device import Device
from steelyard.sim.disturbances import Disturbance, Rebalance, refuse_events
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario
from steelyard.sim.view import Policy, View

EVERY = 3


def pipeline(stages: list[tuple[int, int, str]], sizes: list[int]) -> dict[str, Any]:
    return {
        "stages": [{"first": first, "last": last, "replicas": [{"devices": [name]}]} for first, last, name in stages],
        "micro_batches": sizes,
    }


SPLIT = [pipeline([(0, 4, "full")], [20]), pipeline([(0, 4, "sse")], [10])]
PLANS = [
    SPLIT,
    [pipeline([(0, 2, "sse"), (2, 4, "full")], [10, 10, 10])],
    [pipeline([(0, 4, "sse")], [16, 14])],
    [pipeline([(0, 1, "full"), (1, 4, "sse")], [15, 15])],
    [pipeline([(0, 4, "full")], [11]), pipeline([(0, 4, "sse")], [19])],
]


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """Another plan at every question, whatever is measured."""

    name: ClassVar[str] = "scripted"
    adaptive: ClassVar[bool] = True
    total: int = EVERY * len(PLANS)

    def allocate(self, view: View) -> Plan:
        assert view.steps_left is not None
        return Plan.parse({"pipelines": PLANS[(self.total - view.steps_left) // EVERY]})


@dataclass(frozen=True, kw_only=True)
class Steady:
    """The split that it began with."""

    name: ClassVar[str] = "steady"

    def allocate(self, view: View) -> Plan:
        return Plan.parse({"pipelines": SPLIT})


@pytest.fixture(scope="module")
def changing(tiny_scenario: Scenario) -> Callable[..., Scenario]:
    def build(optimizer: str, **changes: Any) -> Scenario:
        workload = tiny_scenario.workload.model_copy(update={"optimizer": optimizer})
        sampling = tiny_scenario.sampling.model_copy(update={"steps": EVERY * len(PLANS)})
        rules = Rebalance(every_steps=EVERY, at_most=10, pause_s=0.01, restart_s=0.1)
        return tiny_scenario.model_copy(
            update={"workload": workload, "sampling": sampling, "rebalance": rules, **changes}
        )

    return build


def trained(scenario: Scenario, policy: Policy, folder: Path) -> tuple[Course, list[float], dict[str, Any]]:
    """The course, the loss of each step, and the weights in the end, those of several holders checked to be alike."""
    from safetensors.torch import load_file

    job, data = job_of(scenario.workload, scenario.training, folder, seed=0)
    course = Course(scenario, policy)
    file = folder / type(policy).__name__
    launch = run_course(course, lanes_of(scenario), job, data, file=file)
    losses = [sum(parts) for parts in zip(*(own[0]["losses"] for own in launch.answers), strict=True)]
    weights: dict[str, Any] = {}
    for each in sorted(folder.glob(f"{type(policy).__name__}.*")):
        weights |= load_file(each)
    return course, losses, weights


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "most"), [("momentum", 1e-6), ("adamw", 1e-3)])
def test_a_run_that_changes_hands_trains_as_one_that_does_not(
    changing: Callable[..., Scenario], tmp_path: Path, optimizer: str, most: float
) -> None:
    """AdamW divides by the root of the second moments: where a gradient is nearly zero, rounding decides its sign."""
    scenario = changing(optimizer)
    course, losses, weights = trained(scenario, Scripted(), tmp_path)
    _, expected, reference = trained(scenario, Steady(), tmp_path)
    assert [step for step, _ in course.plans] == [0, 3, 6, 9, 12]
    assert [each["changed"] for each in course.decisions] == [True] * 5
    assert [entry["step"] for entry in course.history] == list(range(EVERY * len(PLANS)))
    assert losses == pytest.approx(expected, rel=max(most, 2e-6))
    assert weights.keys() == reference.keys()
    difference = sum(float((weights[name] - reference[name]).double().square().sum()) for name in reference)
    size = sum(float(reference[name].double().square().sum()) for name in reference)
    assert (difference / size) ** 0.5 <= most


@dataclass(frozen=True, kw_only=True)
class Overreaching:
    """A split first, then micro-batches of two sizes in a pipeline, which torch cannot run."""

    name: ClassVar[str] = "overreaching"
    adaptive: ClassVar[bool] = True

    def allocate(self, view: View) -> Plan:
        if view.current is None:
            return Plan.parse({"pipelines": SPLIT})
        pipeline, batch = PLANS[1][0], view.workload.global_batch
        return Plan.parse({"pipelines": [{**pipeline, "micro_batches": [batch - 1, 1]}]})


def test_a_plan_that_torch_cannot_run_changes_nothing_and_the_decision_says_why(
    changing: Callable[..., Scenario],
) -> None:
    course = Course(changing("sgd"), Overreaching())
    first = course.begin()
    left = course.changes_left
    assert course.ask(EVERY, []) == first
    assert [step for step, _ in course.plans] == [0]
    assert course.changes_left == left
    assert not course.decisions[-1]["changed"]
    assert course.decisions[-1]["refused"].startswith("pipelines.0.micro_batches")


def with_points(scenario: Scenario, sizes: set[int], factor: float) -> Scenario:
    """The scenario whose lanes were measured to take so many times as long at some sizes."""

    def other(device: Device) -> Device:
        assert device.profile is not None
        points = [
            each.model_copy(update={"forward_s": factor * each.forward_s, "backward_s": factor * each.backward_s})
            if each.micro_batch in sizes
            else each
            for each in device.profile.points
        ]
        return device.model_copy(update={"profile": device.profile.model_copy(update={"points": points})})

    (node,) = scenario.cluster.nodes
    nodes = [node.model_copy(update={"devices": [other(device) for device in node.devices]})]
    return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": nodes})})


def spans(scenario: Scenario, policy: Policy) -> dict[int, float]:
    """Median predicted seconds of the whole of each step's passes."""
    events = foretold(scenario, policy, 0, "it").events
    work = events[events["kind"].isin(["forward", "backward"])]
    spent = (work["end_s"] - work["start_s"]).groupby([work["step"], work["launch"]]).sum()
    return {int(step): float(each.median()) for step, each in spent.groupby(level=0)}


@pytest.mark.no_cover
@pytest.mark.parametrize("factor", [0.8, 1.5])
def test_no_step_is_predicted_from_its_own_sizes(changing: Callable[..., Scenario], factor: float) -> None:
    """The fifth plan, 11 + 19, is as before whatever was measured at 11; others are not, whose sizes are beside it."""
    scenario = changing("adamw")  # which the tables are of
    before, after = (spans(each, Scripted()) for each in (scenario, with_points(scenario, {11}, factor)))
    last = range(4 * EVERY, 5 * EVERY)
    assert [after[step] for step in last] == pytest.approx([before[step] for step in last])
    assert after[0] != pytest.approx(before[0])


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Gives the first lane as many samples as it was measured to do at once: what it sees decides its plan."""

    name: ClassVar[str] = "looking"
    size: int

    def allocate(self, view: View) -> Plan:
        profile = view.cluster.by_name["full"].profile
        assert profile is not None
        known = self.size in {point.micro_batch for point in profile.points}
        return view.plan([self.size if known else self.size + 1, 30 - self.size - (not known)])


@pytest.mark.parametrize("size", [5, 11, 17, 23])
def test_a_policy_sees_in_simulation_what_it_sees_in_reality(changing: Callable[..., Scenario], size: int) -> None:
    """It comes to a size because that was measured, and the measurement is then held out of what predicts it."""
    scenario = changing("sgd")
    run = foretold(scenario, Looking(size=size), 0, "it")
    course = Course(scenario, Looking(size=size))
    course.begin()
    plan = course.plans[0][1]
    assert Plan.parse(run.plan).sha256 == plan.sha256
    assert run.manifest.provenance["held_out_sizes"] == {plan.sha256: sorted({size, 30 - size})}


def test_too_few_other_sizes_are_refused(changing: Callable[..., Scenario]) -> None:
    whole = changing("sgd")

    def only(device: Device) -> Device:
        assert device.profile is not None
        points = [each for each in device.profile.points if each.micro_batch in (2, 11, 31)]
        return device.model_copy(update={"profile": device.profile.model_copy(update={"points": points})})

    (node,) = whole.cluster.nodes
    nodes = [node.model_copy(update={"devices": [only(device) for device in node.devices]})]
    scenario = whole.model_copy(update={"cluster": whole.cluster.model_copy(update={"nodes": nodes})})
    foretold(scenario, Steady(), 0, "it")
    with pytest.raises(InputError, match="calibration of full"):
        foretold(scenario, Scripted(), 0, "it")


@pytest.mark.slow
def test_a_lane_that_slows_down_is_followed_and_the_record_says_how(
    changing: Callable[..., Scenario], tmp_path: Path
) -> None:
    slowdown = Disturbance(kind="slowdown", device="full", from_step=5, factor=8.0)
    scenario = changing("adamw", disturbances=[slowdown])
    gauging = scenario.replay.model_copy(update={"launches": 2, "gauge_launches": 1})
    scenario = scenario.model_copy(update={"replay": gauging})
    study = replay(scenario, [make_policy("malleus"), Steady()], tmp_path, budget_s=1e-3)
    notes = study.measured[0].manifest.notes
    assert "the budget allowed 3 of 6 launches" in notes  # one of each, the twin included
    assert any(re.search("full took .* times as long when 8 times was asked", note) for note in notes), notes
    assert [run.manifest.kind for run in study.predicted] == ["simulated", "simulated"]
    steady = study.measured[1]
    work = steady.events[steady.events["kind"].isin(["forward", "backward"]) & (steady.events["device"] == "full")]
    spent = (work["end_s"] - work["start_s"]).groupby(work["step"]).sum()
    # Eight times as long, on a host that may be busy; the first steps are cold, and so there are five before.
    assert spent[5:].median() > 3 * spent[:5].min()
    quotas = this_host().capability("cpu_quota").available
    for run in study.measured:
        assert run.manifest.provenance["slowed_by"] == {"full": ["quota" if quotas else "loop"]}
        assert any("slowed by a loop" in note for note in run.manifest.notes) is not quotas
        contention = run.manifest.provenance["contention"]
        assert 0 <= contention["contended_percent"] <= 100
        assert contention["busy"] == bool(contention["reasons"])
    for run in study.measured:
        for ledger in run.summary.devices.values():
            assert ledger.total_s() == pytest.approx(run.summary.step_time_s.mean, rel=1e-6)
    adapted = study.measured[0]
    asked = [each for each in adapted.decisions if each["why"] == "asked"]
    assert [each["step"] for each in asked] == [3, 6, 9, 12]
    stood = adapted.events[adapted.events["kind"] == "rebalance"]
    assert set(stood["step"]) == {3, 6, 9, 12}
    assert all(error <= 1e-6 for error in adapted.manifest.provenance["gradient_errors"].values())
    found = read_run(next(study.folder.glob("00-*-measured")))
    assert [each["step"] for each in found.decisions] == [each["step"] for each in adapted.decisions]


@pytest.mark.slow
def test_a_slowed_lane_has_its_speed_back_when_the_disturbance_is_over(
    changing: Callable[..., Scenario], tmp_path: Path
) -> None:
    slowdown = Disturbance(kind="slowdown", device="full", from_step=5, until_step=10, factor=8.0)
    scenario = changing("sgd", disturbances=[slowdown])
    course, _, _ = trained(scenario, Steady(), tmp_path)
    spent = [entry["devices"]["full"]["compute_s"] for entry in course.history]
    slow, before, after = median(spent[5:10]), min(spent[:5]), min(spent[10:])
    assert slow > 3 * max(before, after)


def test_steps_that_others_disturbed_make_an_adaptive_run_busy(changing: Callable[..., Scenario]) -> None:
    """Also where nothing of the host changed meanwhile; a lane that takes no part says nothing of it."""
    course = Course(changing("sgd"), Steady())

    def followed(contended: float) -> Followed:
        own = {"steps": [[["forward", 0, 0.0, 1.0, 0.5, 0]]], "contended": contended, "slowed_by": ["loop"]}
        return Followed(0, course, LaunchResult([{"op": "course"}], [[own], [{"steps": [[]], "contended": 0.0}]]))

    quiet, busy = ([followed(0.01)], [followed(0.01), followed(0.15)])
    assert not circumstances(Measurement(), quiet)["contention"]["busy"]
    found = circumstances(Measurement(), busy)["contention"]
    assert found["busy"]
    assert found["contended_percent"] == pytest.approx(8.0)
    assert found["reasons"] == ["8 % of the compute segments were disturbed"]
    assert slowing_notes(quiet) == [
        "full: slowed by a loop that kept the processor busy: no quota of its time could be had for that"
    ]


@dataclass
class Interrupting:
    """Watches, and interrupts when so many runs are done, as Ctrl-C would; what is on disk then is set aside."""

    after: int
    runs: Path
    aside: Path
    known: list[Planned] = field(default_factory=list)
    launched: list[int] = field(default_factory=list)
    heard: set[str] = field(default_factory=set)

    def __call__(self, done: int, total: int) -> None:
        if done == self.after:
            (study,) = self.runs.glob("replay-*")
            shutil.copytree(study, self.aside)
            raise KeyboardInterrupt

    def plans(self, plans: Sequence[Planned]) -> None:
        self.known = list(plans)

    def launch(self, lanes: Sequence[str], tasks: Sequence[Task]) -> None:
        self.launched += [task["index"] for task in tasks]

    def listen(self, lane: str, line: str) -> None:
        self.heard.add(line.split(" ", maxsplit=1)[0])


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_complete_and_so_does_a_kill(
    changing: Callable[..., Scenario], tmp_path: Path
) -> None:
    """In the fifth of six runs: of the twin there is one, of the policies two and one; all of it was on disk."""
    scenario = changing("sgd")
    watching = Interrupting(5, tmp_path / "runs", tmp_path / "killed")
    policies = [make_policy("malleus"), Steady(), Steady()]
    study = replay(scenario, policies, tmp_path / "runs", tick=watching)
    assert study.interrupted
    labels = [run.manifest.label for run in study.measured]
    (twin,) = [run for run in study.measured if run.manifest.twin_of is not None]
    assert labels == [*[run.manifest.label for run in study.predicted], twin.manifest.label]
    assert [planned.label for planned in watching.known] == labels
    assert watching.launched == [0, 1, 2, 0, 1]
    assert {"alive", "asked", "done"} <= watching.heard
    assert [len(run.summary.launch_median_step_time_s) for run in study.measured] == [2, 1, 1]
    for run in study.measured:
        assert "interrupted after 4 of 6 launches" in run.manifest.notes
        assert any("given twice" in note for note in run.manifest.notes)
        assert run.manifest.provenance["contention"]["busy"] == bool(run.manifest.provenance["contention"]["reasons"])
    assert compare(study.runs).noise_floor_percent is not None
    assert len((tmp_path / "runs" / "history.jsonl").read_text().splitlines()) == 1
    less = shutil.copytree(watching.aside, tmp_path / "less")
    (less / "launches" / "0001.json").unlink()  # the only one of the second contender
    recover([less])
    assert [each.name[:2] for each in sorted(less.glob("*-measured"))] == ["00", "02"]
    recover([watching.aside])
    stored = [read_run(folder) for folder in find_runs([watching.aside])]
    found = {run.manifest.label: run for run in stored if run.manifest.kind == "measured"}
    assert set(found) == set(labels)
    for run in study.measured:
        own = found[run.manifest.label]
        assert own.events.equals(run.events)
        assert own.summary == run.summary
        assert own.decisions == run.decisions
        proofs = ("gradient_errors", "unproven_plans")
        assert [own.manifest.provenance[key] for key in proofs] == [run.manifest.provenance[key] for key in proofs]


@pytest.mark.parametrize(
    ("change", "path"),
    [({"kind": "loss", "from_step": 4}, "disturbances.0.kind"), ({"factor": 0.5}, "disturbances.0.factor")],
)
def test_what_cannot_be_done_to_real_lanes_is_refused(
    tiny_scenario: Scenario, change: dict[str, Any], path: str
) -> None:
    fields = {"kind": "slowdown", "device": "full", "from_step": 2, **change}
    scenario = tiny_scenario.model_copy(update={"disturbances": [Disturbance.model_validate(fields)]})
    with pytest.raises(InputError) as caught:
        refuse_disturbances(scenario)
    assert caught.value.path == path


@pytest.mark.no_cover
@pytest.mark.parametrize("kinds", [["loss"], ["loss", "return"]])
def test_what_the_refusal_of_a_lost_lane_sends_to_takes_it(tiny_scenario: Scenario, kinds: list[str]) -> None:
    events = [
        Disturbance.model_validate({"kind": kind, "device": "full", "from_step": step})
        for step, kind in enumerate(kinds, 2)
    ]
    scenario = tiny_scenario.model_copy(update={"disturbances": events, "rebalance": Rebalance(every_steps=1)})
    with pytest.raises(InputError) as caught:
        refuse_disturbances(scenario)
    told = re.findall(r"`steelyard (\w+)`", caught.value.mend)
    assert told == ["simulate", "chaos"]
    assert simulate(scenario, make_policy("makespan-adaptive")).decisions
    with pytest.raises(InputError):
        refuse_events(dict(scenario))  # by whatever trains, unless both are taken out, as the mend says
    refuse_events(dict(scenario.model_copy(update={"disturbances": [], "rebalance": None})))
