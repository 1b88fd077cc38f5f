"""The conformance kit for authors of policies: scenarios at random, and what every policy must do with them.

    from steelyard.policies.testing import check_policy

    def test_my_policy():
        check_policy(MyPolicy)

A failure shows the smallest scenario that was found, as a file that ``steelyard simulate`` takes.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from ..results.record import digest
from ..sim.checking import validate
from ..sim.plan import Infeasible, Plan, PlanError
from ..sim.spec import Scenario, scenario_from
from ..sim.view import DeviceView, Fixed, Policy, View
from ..sim.workload import Workload
from ._base import Choice, Parameter, Range, parameters
from .toml import to_toml

try:
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise InputError("hypothesis", "is not installed", "pip install 'steelyard[testing]'") from error

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

Document = dict[str, Any]
Layers = tuple[tuple[int, int, int], ...]
BATCHES = (1, 2, 3, 5, 7, 8, 13, 16, 31, 32, 64)
PROFILE_SIZES = (1, 2, 4, 8, 16, 64)
RESIDUALS = ([0.0], [-0.05, 0.0, 0.05], [-0.02, -0.01, 0.0, 0.1])
TENSOR = ("forward_elements", "backward_elements")
PLAIN = (int, float, str, bool)
RELATIVE = 1e-9
"""Two simulated times that differ by less are the same: sums in another order."""


class ConformanceError(AssertionError):
    """A policy broke a rule; ``scenario_toml`` reproduces it.

    Attributes:
        problem: which rule, and how.
        policy: the policy with the parameters that broke it.
        scenario_toml: the smallest scenario that was found; empty where the rule is about the class alone.
    """

    def __init__(self, problem: str, policy: object, scenario_toml: str = "") -> None:
        self.problem = problem
        self.policy = policy
        self.scenario_toml = scenario_toml
        shown = f"\n\nA scenario that shows it (save it as scenario.toml):\n\n{scenario_toml}" if scenario_toml else ""
        super().__init__(f"{policy}: {problem}{shown}")


def check_policy(
    policy: Policy | type,
    *,
    max_examples: int = 100,
    seed: int = 0,
    unit_free: bool = False,
) -> None:
    """Hold a policy against its contract on generated scenarios.

    For the class: a frozen dataclass with ``name``, a one-sentence docstring, typed fields, defaults within their
    ranges, that can be pickled. For every scenario, and all parameters within their ranges (of an instance: its own):

    - the plan passes ``Plan.check``, or :class:`Infeasible` says why. Where the devices have room there must be a plan,
      but for a batch of fewer samples than there are devices with room: a policy may insist that each of them works. A
      class that says ``rigid: ClassVar[bool] = True`` lays out one shape, and may find it not to fit;
    - the same view gives the same plan, from an equal policy too, and nothing the policy saw is changed;
    - other names and another order of nodes and devices change neither which kinds of device do how much, nor the
      simulated step time without noise. Equal devices may share unequally; which of them gets more, and with it
      which links are used, may then depend on the order, and the time is not compared where links differ.

    Args:
        policy: a class, or an instance whose parameters shall be kept.
        max_examples: scenarios to try.
        seed: of the generated scenarios; equal seeds try the same ones within a process.
        unit_free: check too that a world in which everything takes four times as long gets the same plan, give or
            take a sample per device (rounding). Not every policy has to: one may weigh seconds against dollars.

    Raises:
        ConformanceError: the rule that was broken, with the smallest counter-example that was found.
    """
    kind = policy if isinstance(policy, type) else type(policy)
    _check_class(kind)
    drawn = policies(kind) if isinstance(policy, type) else st.just(policy)
    last: list[ConformanceError] = []

    def example(scenario: Scenario, one: Policy, order: int) -> None:
        text = scenario_toml(scenario)  # before the policy has seen it, and perhaps changed it
        try:
            _check_scenario(scenario, one, order, unit_free)
        except _BrokenError as broken:
            last[:] = [ConformanceError(str(broken), one, text)]
            last[0].__cause__ = broken.__cause__
            raise

    run = given(scenario=scenarios(), one=drawn, order=st.integers(0, 2**16))(example)
    try:
        _configured(run, max_examples, seed)()
    except Exception:
        if last:  # the last failure is the smallest: Hypothesis ends with it
            raise last[0] from last[0].__cause__
        raise


def _configured(run: Any, max_examples: int, number: int) -> Any:
    """The same examples each time, no database, one failure, and no time limits: hosts stall."""
    phases = (Phase.generate, Phase.target, Phase.shrink)
    profile = settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        phases=phases,
        report_multiple_bugs=False,
        print_blob=False,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    return seed(number)(profile(run))


def scenario_toml(scenario: Scenario) -> str:
    """A scenario as the text of a scenario file, with only what differs from the defaults."""
    return to_toml(scenario.model_dump(mode="json", exclude_defaults=True, exclude_none=True))


# Strategies


def policies(kind: type) -> SearchStrategy[Any]:
    """Policies of a class: the default, and any with searchable parameters within their ranges."""
    spaces = {each.name: _values(each) for each in parameters(kind) if each.space is not None}
    return st.one_of(st.builds(kind), st.builds(kind, **spaces)) if spaces else st.builds(kind)


def _values(parameter: Parameter) -> SearchStrategy[Any]:
    space = parameter.space
    if isinstance(space, Choice):
        return st.sampled_from(space.options)
    assert isinstance(space, Range), "only parameters with a range are drawn"
    if parameter.type is int:
        return st.integers(int(space.low), int(space.high))
    return st.floats(space.low, space.high)


@st.composite
def workloads(draw: DrawFn) -> Workload:
    """Small models, with batches of one, primes and powers of two, with and without a largest micro-batch."""
    return validate(Workload, draw(_workloads()), "workload")


@st.composite
def devices(draw: DrawFn, workload: Workload | None = None) -> Any:
    """Datasheet and profiled devices, with memory from too little for the workload to plenty."""
    from ..sim.device import Device

    chosen = draw(workloads()) if workload is None else workload
    return validate(Device, {"name": "device", **draw(_devices(chosen))}, "device")


@st.composite
def clusters(draw: DrawFn, workload: Workload | None = None) -> Any:
    """One to six devices on one to three nodes, some of them equal, with and without measured collectives."""
    from ..sim.device import Cluster

    chosen = draw(workloads()) if workload is None else workload
    return validate(Cluster, draw(_clusters(chosen)), "cluster")


@st.composite
def scenarios(draw: DrawFn) -> Scenario:
    """Small valid scenarios; not all of them have a plan."""
    document = draw(_workloads())
    workload = validate(Workload, document, "workload")
    cluster = draw(_clusters(workload))
    sampling = {"launches": 2, "steps": 3, "search_launches": 1}
    return scenario_from({"name": "generated", "cluster": cluster, "workload": document, "sampling": sampling})


@st.composite
def _workloads(draw: DrawFn) -> Document:
    count = draw(st.integers(1, 3))
    width = draw(st.sampled_from([8, 64, 512]))
    layer = {
        "parameters": width * width,
        "trainable_parameters": width * width,
        "forward": [{"kind": "matmul", "flops": [0.0, 2.0 * width**2], "elements": [0.0, 2.0 * width]}],
        "backward": [{"kind": "matmul", "flops": [0.0, 4.0 * width**2], "elements": [0.0, 4.0 * width]}],
        "activation_elements": [0.0, 4.0 * width],
        "output_elements": [0.0, float(width)],
    }
    parts = draw(st.sampled_from([None, 2, 4, 6]))
    if parts is not None:
        layer["tensor"] = {"divisor": parts, **{key: [[0.0, float(width)]] for key in TENSOR}}
    batch = draw(st.sampled_from(BATCHES))
    document = {
        "model": {"name": "generated", "layers": [{"name": f"layer{number}", **layer} for number in range(count)]},
        "global_batch": batch,
        "sequence_length": draw(st.sampled_from([1, 16, 128])),
        "dtype": draw(st.sampled_from(["fp32", "bf16"])),
        "optimizer": draw(st.sampled_from(["adamw", "sgd"])),
    }
    largest = draw(st.none() | st.integers(1, batch))
    return document if largest is None else {**document, "max_micro_batch": largest}


@st.composite
def _devices(draw: DrawFn, workload: Workload) -> Document:
    """A device without its name."""
    peak = draw(st.sampled_from([0.01, 0.1, 1.0, 3.0, 100.0]))
    room = draw(st.sampled_from([1.0, 0.5, 0.25, 0.0]) | st.floats(0.0, 2.0))
    needed = workload.state_bytes + room * workload.global_batch * workload.activation_bytes_per_sample
    device: Document = {
        "peak_tflops": {"fp32": peak, "bf16": 2 * peak} if draw(st.booleans()) else {"fp32": peak},
        # A little over the exact bytes, since GiB and back may round down; no room at all means too little.
        "memory_gib": (needed if room > 0 else workload.state_bytes * 0.9) * (1 + 1e-12) / 2**30,
        "memory_bandwidth_gb_per_s": draw(st.sampled_from([1.0, 10.0, 1000.0])),
    }
    if draw(st.booleans()):
        device["launch_overhead_us"] = draw(st.sampled_from([0.0, 5.0, 1000.0]))
    if draw(st.booleans()):
        device["profile"] = draw(_profiles(workload))
    return device


@st.composite
def _profiles(draw: DrawFn, workload: Workload) -> Document:
    sizes = draw(st.lists(st.sampled_from(PROFILE_SIZES), min_size=2, max_size=6, unique=True))
    fixed, each = draw(st.sampled_from([0.0, 1e-4, 1e-2])), draw(st.sampled_from([1e-5, 1e-4, 3e-3]))
    bend = draw(st.sampled_from([0.0, 0.01, -0.003]))
    seconds = {size: fixed + each * size * (1 + bend * size) for size in sorted(sizes)}
    return {
        "workload": workload.key,
        "points": [
            {"micro_batch": size, "forward_s": value, "backward_s": 2 * value} for size, value in seconds.items()
        ],
        "optimizer_s": draw(st.sampled_from([1e-6, 1e-3])),
        "step_residuals": draw(st.sampled_from(RESIDUALS)),
        "launch_residuals": draw(st.sampled_from(RESIDUALS)),
    }


@st.composite
def _clusters(draw: DrawFn, workload: Workload) -> Document:
    kinds = draw(st.lists(_devices(workload), min_size=1, max_size=3))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))
    named = [{"name": f"device{number}", **kind} for number, kind in enumerate(chosen)]
    cuts = sorted(draw(st.sets(st.integers(1, len(named) - 1), max_size=2))) if len(named) > 1 else []
    groups = [named[first:last] for first, last in zip([0, *cuts], [*cuts, len(named)], strict=True)]
    nodes = [{"name": f"node{n}", "devices": group, "link": draw(_links())} for n, group in enumerate(groups)]
    cluster: Document = {"nodes": nodes}
    if len(nodes) > 1:
        cluster["network"] = draw(_links())
    names = [device["name"] for device in named]
    if len(names) > 1 and draw(st.booleans()):
        members = draw(st.just(names) | st.lists(st.sampled_from(names), min_size=2, unique=True))
        cluster["collectives"] = [draw(_collectives(members))]
    return cluster


@st.composite
def _links(draw: DrawFn) -> Document:
    latency, rate = draw(st.sampled_from([0.0, 10.0, 1000.0])), draw(st.sampled_from([0.01, 1.0, 100.0]))
    return {"name": "link", "latency_us": latency, "bandwidth_gb_per_s": rate}


@st.composite
def _collectives(draw: DrawFn, members: Sequence[str]) -> Document:
    base = draw(st.sampled_from([1e-5, 1e-3]))
    return {
        "backend": "gloo",
        "devices": list(members),
        "points": [{"bytes": 10**power, "seconds": base * 3 ** (power - 2)} for power in (2, 4, 6, 8)],
        "step_residuals": draw(st.sampled_from(RESIDUALS)),
    }


# Rules


class _BrokenError(AssertionError):
    """A rule is broken; :func:`check_policy` adds by whom and where."""


def _check_class(kind: type) -> None:
    """What can be said of a policy without a scenario."""

    def require(holds: bool, problem: str) -> None:
        if not holds:
            raise ConformanceError(problem, kind.__name__)

    require(dataclasses.is_dataclass(kind), "is no dataclass")
    frozen: bool = vars(kind)["__dataclass_params__"].frozen if "__dataclass_params__" in vars(kind) else False
    require(frozen, "is not frozen: @dataclass(frozen=True, kw_only=True)")
    name = getattr(kind, "name", None)
    require(isinstance(name, str) and bool(name), 'has no name: name: ClassVar[str] = "..."')
    require(callable(getattr(kind, "allocate", None)), "has no method allocate(view)")
    summary = (kind.__doc__ or "").strip().splitlines()
    require(bool(summary) and not summary[0].startswith(f"{kind.__name__}("), "has no docstring that says what it does")
    for parameter in parameters(kind):
        _check_parameter(parameter, require)
    made = kind()
    try:
        again = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own bytes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConformanceError(f"cannot be pickled: {error}", kind.__name__) from error
    require(again == made, "is not the same after pickling")


def _check_parameter(parameter: Parameter, require: Any) -> None:
    space, default = parameter.space, parameter.default
    what = f"parameter {parameter.name}"
    require(default is not None, f"{what} has no default")
    if isinstance(space, Choice):
        require(default in space.options, f"{what}: the default {default!r} is not among its choices")
        return
    require(parameter.type in PLAIN, f"{what} is of type {parameter.type}; int, float, str or bool can be recorded")
    require(
        isinstance(default, parameter.type | int), f"{what}: the default {default!r} is no {parameter.type.__name__}"
    )
    if isinstance(space, Range):
        require(math.isfinite(space.low) and math.isfinite(space.high), f"{what}: its range is not finite")
        require(space.low <= default <= space.high, f"{what}: the default {default!r} is outside of its range")
        require(not space.log or space.low > 0, f"{what}: a logarithmic range starts above 0")


def _check_scenario(scenario: Scenario, policy: Policy, order: int, unit_free: bool) -> None:
    before = digest(scenario.model_dump(mode="json"))
    plan = _allocate(scenario, policy, "")
    again = _allocate(scenario, pickle.loads(pickle.dumps(policy)), " when asked again")  # noqa: S301 - our own bytes
    if _sha(plan) != _sha(again):
        raise _BrokenError(f"the same view gives another plan when asked again: {_say(plan)}, then {_say(again)}")
    if digest(scenario.model_dump(mode="json")) != before:
        raise _BrokenError("it changed the workload or the cluster that it was shown")
    _check_order(scenario, policy, plan, order)
    if unit_free:
        _check_units(scenario, policy, plan)


def _allocate(scenario: Scenario, policy: Policy, when: str) -> Plan | None:
    """The plan, judged; None where there is rightly none."""
    view = View.of(scenario)
    room = sum(device.capacity for device in view.devices)
    try:
        plan = policy.allocate(view)
    except Infeasible as error:
        if not error.problem:
            raise _BrokenError(f"Infeasible{when} without a reason") from error
        workers = sum(device.capacity > 0 for device in view.devices)
        if workers <= scenario.workload.global_batch <= room and not getattr(policy, "rigid", False):
            held = f"the devices have room for {room} of {scenario.workload.global_batch} samples"
            raise _BrokenError(f"Infeasible{when} ({error}), but {held}: a plan exists") from error
        return None
    except Exception as error:
        raise _BrokenError(f"allocate raised {type(error).__name__}{when}: {error}") from error
    if not isinstance(plan, Plan):
        raise _BrokenError(f"allocate gave a {type(plan).__name__}{when} and no Plan")
    try:
        plan.check(scenario)
    except PlanError as error:
        raise _BrokenError(f"the plan is invalid{when}: {error}") from error
    if view != View.of(scenario):
        raise _BrokenError(f"it changed the view{when}")
    return plan


def _check_order(scenario: Scenario, policy: Policy, plan: Plan | None, order: int) -> None:
    """Names and order mean nothing."""
    other = reordered(scenario, order)
    moved = _allocate(other, policy, " once the devices are renamed and reordered")
    if (plan is None) != (moved is None):
        raise _BrokenError("renaming and reordering the devices changes whether there is a plan")
    if plan is None or moved is None:
        return
    if _roles(scenario, plan) != _roles(other, moved):
        raise _BrokenError(f"renaming and reordering the devices changes the plan: {_say(plan)}, then {_say(moved)}")
    if _is_tie(scenario, plan):
        return
    first, second = _step_s(scenario, plan), _step_s(other, moved)
    if not math.isclose(first, second, rel_tol=RELATIVE):
        raise _BrokenError(f"renaming and reordering the devices changes the step: {first} s, then {second} s")


def reordered(scenario: Scenario, order: int) -> Scenario:
    """The same world under other names, with its nodes and devices in another order."""
    import random

    draws = random.Random(order)  # noqa: S311 - a permutation of a test
    document = scenario.model_dump(mode="json")
    cluster = document["cluster"]
    names = [device["name"] for node in cluster["nodes"] for device in node["devices"]]
    fresh = [f"other{number}" for number in range(len(names))]
    draws.shuffle(fresh)
    renamed = dict(zip(names, fresh, strict=True))
    for node in cluster["nodes"]:
        draws.shuffle(node["devices"])
        for device in node["devices"]:
            device["name"] = renamed[device["name"]]
    draws.shuffle(cluster["nodes"])
    for table in cluster["collectives"]:
        table["devices"] = [renamed[name] for name in table["devices"]]
        draws.shuffle(table["devices"])
    return scenario_from(document)


def _check_units(scenario: Scenario, policy: Policy, plan: Plan | None) -> None:
    """A world in which everything takes four times as long."""
    slow = _allocate(slower(scenario), policy, " once everything takes four times as long")
    if plan is None or slow is None:
        return
    was, now = plan.samples(), slow.samples()
    if any(abs(was.get(name, 0) - now.get(name, 0)) > 1 for name in {*was, *now}):
        raise _BrokenError(
            f"once everything takes four times as long the plan is another: {_say(plan)}, then {_say(slow)}"
        )


def slower(scenario: Scenario, factor: int = 4) -> Scenario:
    """The same world with all times multiplied by a factor (a power of two keeps floating point exact)."""
    document = scenario.model_dump(mode="json")
    cluster = document["cluster"]
    links = [node["link"] for node in cluster["nodes"]] + [each for each in [cluster["network"]] if each]
    for link in links:
        link["latency_us"] *= factor
        link["bandwidth_gb_per_s"] /= factor
    for point in (point for table in cluster["collectives"] for point in table["points"]):
        point["seconds"] *= factor
    for device in (device for node in cluster["nodes"] for device in node["devices"]):
        device["peak_tflops"] = {dtype: peak / factor for dtype, peak in device["peak_tflops"].items()}
        device["memory_bandwidth_gb_per_s"] /= factor
        device["launch_overhead_us"] *= factor
        if device["profile"]:
            device["profile"]["optimizer_s"] *= factor
            for point in device["profile"]["points"]:
                point["forward_s"] *= factor
                point["backward_s"] *= factor
    return scenario_from(document)


def quiet(scenario: Scenario) -> Scenario:
    """The same world without noise."""
    document = scenario.model_dump(mode="json")
    cluster = document["cluster"]
    profiles = [device["profile"] for node in cluster["nodes"] for device in node["devices"] if device["profile"]]
    for noisy in [*profiles, *cluster["collectives"]]:
        noisy["step_residuals"] = noisy["launch_residuals"] = [0.0]
    return scenario_from(document)


def _step_s(scenario: Scenario, plan: Plan) -> float:
    """The simulated step without noise, in seconds."""
    from ..sim.engine import objective_value

    still = quiet(scenario).model_copy(update={"objective": type(scenario.objective)()})
    return scenario.workload.global_batch / objective_value(still, Fixed(plan), seed=0, launches=1)


def _roles(scenario: Scenario, plan: Plan) -> Counter[tuple[str, int, Layers]]:
    """How often a device of some figures has so many samples, and which layers, on a group of so many."""
    samples, held = plan.samples(), _layers(plan)
    return Counter(
        (_figures(device), samples.get(device.name, 0), tuple(held.get(device.name, ())))
        for device in View.of(scenario).devices
    )


def _layers(plan: Plan) -> dict[str, list[tuple[int, int, int]]]:
    """Per device of a plan, first and last layer and number of devices of each stage that it works on."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for stage in (stage for pipeline in plan.pipelines for stage in pipeline.stages):
        for replica in stage.replicas:
            for name in replica.devices:
                found.setdefault(name, []).append((stage.first, stage.last, len(replica.devices)))
    return found


def _is_tie(scenario: Scenario, plan: Plan) -> bool:
    """Whether equal devices have unequal shares, and links that may differ."""
    cluster = scenario.cluster
    kinds = Counter(_figures(device) for device in View.of(scenario).devices)
    return len(_roles(scenario, plan)) > len(kinds) and (len(cluster.nodes) > 1 or bool(cluster.collectives))


def _figures(device: DeviceView) -> str:
    """All that a policy sees of a device but its name."""
    cost = dataclasses.replace(device.cost, device="")
    return repr(dataclasses.replace(device, name="", cost=cost))


def _sha(plan: Plan | None) -> str:
    return "" if plan is None else plan.sha256


def _say(plan: Plan | None) -> str:
    if plan is None:
        return "none"
    held = _layers(plan)
    whole = len({tuple(each) for each in held.values()}) == 1  # data parallel: all have the same layers
    where = {
        name: "" if whole else " of layers " + ", ".join(f"{each[0]}-{each[1]}" for each in held[name]) for name in held
    }
    return ", ".join(f"{name} {count}{where[name]}" for name, count in sorted(plan.samples().items()))
