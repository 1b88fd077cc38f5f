"""View: what a policy may see; and the contract of a policy."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from ..results.errors import InputError
from ..results.record import PolicyRecord
from . import cost
from .device import Cluster, Device
from .disturbances import Rebalance, disturbed, without
from .moving import Change, change
from .network import network_of
from .plan import Plan, PlanError
from .spec import Faults, Objective, Scenario
from .steps import Steps
from .workload import Workload


@dataclass(frozen=True)
class DeviceView:
    """One device as a policy sees it: figures, and estimates of time and room for this workload."""

    name: str
    peak_flops: float
    """Peak FLOP/s in the workload's dtype."""
    memory_bandwidth: float
    """Bytes per second."""
    memory_bytes: float
    capacity: int
    """The most samples per step: unlimited (the global batch) with accumulation, 0 where the model does not fit."""
    cost: cost.DeviceCost
    largest_micro_batch: int | None
    """More samples than these are cut into micro-batches; None: no cut (and ``capacity`` is the limit)."""

    def step_s(self, samples: int) -> float:
        """Estimated seconds of forward, backward and optimizer for so many samples in a step; 0 samples take none."""
        if samples <= 0:
            return 0.0
        if self.largest_micro_batch is None or samples <= self.largest_micro_batch:
            return self.cost.compute_s(samples) + self.cost.optimizer_s
        count = -(-samples // self.largest_micro_batch)
        size, over = divmod(samples, count)  # as micro_batches() cuts them, without the list
        larger = over * self.cost.compute_s(size + 1) if over else 0.0
        return larger + (count - over) * self.cost.compute_s(size) + self.cost.optimizer_s

    def most_within(self, seconds: float) -> int:
        """The most samples (at most ``capacity``) whose step takes no longer than ``seconds``.

        One more sample may take less time where it makes one more micro-batch (two halves can be cheaper than a whole
        that no longer fits a cache). So: the largest count of micro-batches that can fit, then the most samples in it;
        time grows with the samples within a count, and from the least of one count to the least of the next.
        """
        size = self.largest_micro_batch or max(self.capacity, 1)
        counts = range(-(-self.capacity // size))
        count = bisect.bisect_right(counts, seconds, key=lambda number: self.step_s(number * size + 1)) - 1
        if count < 0:
            return 0
        begin, end = count * size + 1, min((count + 1) * size, self.capacity)
        return count * size + bisect.bisect_right(range(begin, end + 1), seconds, key=self.step_s)


@dataclass(frozen=True, kw_only=True)
class View:
    """What a policy may see: devices alive, workload, objective, estimates, the measured past; never the future."""

    devices: tuple[DeviceView, ...]
    workload: Workload
    cluster: Cluster
    objective: Objective = field(default_factory=Objective)
    seed: int = 0
    steps_left: int | None = None
    """Steps that are still to be done; None: nobody knows."""
    current: Plan | None = None
    """The plan so far, devices that are lost since included; None at the start."""
    rebalance: Rebalance | None = None
    """When the policy is asked again, and what a change costs; None: never."""
    changes_left: int | None = None
    """How often it may still change the plan of its own will; None: nobody counts."""
    storage_bytes_per_s: float = 2e9
    """What all devices together read of states that no device holds any more."""
    history: tuple[dict[str, Any], ...] = ()
    """Measured steps so far, oldest first: ``step``, ``step_s``, ``sync_s`` (communication that the busiest device
    waited for), ``plan_sha256``; per device ``samples``, ``compute_s`` (forward, backward, optimizer) and ``wait_s``.
    """
    plans: Mapping[str, Plan] = field(default_factory=dict)
    """The plans of the past, the current one included, by the digest that the history names them by."""

    @classmethod
    def of(cls, scenario: Scenario, *, gone: Collection[str] = ()) -> Self:
        """The view at the start of a run: every device alive (but those gone), no past."""
        cluster = without(scenario.cluster, gone)
        return cls(
            devices=_devices(cluster, scenario.workload),
            workload=scenario.workload,
            cluster=cluster,
            objective=scenario.objective,
            seed=scenario.seed,
            rebalance=scenario.rebalance,
            changes_left=scenario.rebalance.at_most if scenario.rebalance else None,
            storage_bytes_per_s=(scenario.faults or Faults()).storage_gb_per_s * 1e9,
        )

    def slowed(self, factors: Mapping[str, float]) -> Self:
        """The view that some devices give if all their work takes so many times as long: what a measurement taught.

        A policy that knows nothing of the past plans for the present with it: ``inner.allocate(view.slowed(...))``.
        """
        cluster = disturbed(self.cluster, factors)
        fresh = {device.name: device for device in _devices(cluster, self.workload)}
        return dataclasses.replace(self, cluster=cluster, devices=tuple(fresh[each.name] for each in self.devices))

    def change_to(self, plan: Plan) -> Change:
        """What going from the current plan to another costs, part by part."""
        rules = self.rebalance or Rebalance()
        storage = self.storage_bytes_per_s
        return change(self.cluster, self.workload, self.current, plan, rules=rules, storage=storage)

    def price_s(self, plan: Plan) -> float:
        """Seconds that the training stands still to go from the current plan to another; 0 at the start of a run."""
        return self.change_to(plan).seconds

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step that the plan must hand out."""
        return self.workload.global_batch

    def sync_s(self, names: Sequence[str]) -> float:
        """Estimated seconds of the gradient all-reduce over some devices; 0 where all layers are frozen."""
        if not self.workload.gradient_bytes:
            return 0.0
        return network_of(self.cluster).collective("all_reduce", names, self.workload.gradient_bytes).alone_s

    @cached_property
    def speeds(self) -> tuple[float, ...]:
        """Samples per second of each device, estimated at an equal share of the batch."""
        share = max(1, round(self.global_batch / len(self.devices)))
        rows = np.arange(len(self.steps.capacity))
        seconds = self.steps.at(rows, np.full(len(rows), share))
        return tuple((share / seconds)[self.steps.row_of].tolist())

    @cached_property
    def steps(self) -> Steps:
        """The devices' step times as arrays."""
        return Steps(self.devices, self.global_batch)

    def among(self, places: Sequence[int]) -> Self:
        """The view of some of the devices, in this order."""
        found = dataclasses.replace(self, devices=tuple(self.devices[place] for place in places))
        # What is known of their times stays known: a cached property may be filled.
        found.__dict__["steps"] = self.steps.among(np.asarray(places, dtype=np.int64))
        return found

    def plan(self, samples: Sequence[int]) -> Plan:
        """The data-parallel plan that gives each device (in the view's order) so many samples."""
        names = (device.name for device in self.devices)
        return Plan.data_parallel(self.workload, dict(zip(names, samples, strict=True)))


def _devices(cluster: Cluster, workload: Workload) -> tuple[DeviceView, ...]:
    return tuple(_device_view(device, workload) for device in cluster.devices)


def _device_view(device: Device, workload: Workload) -> DeviceView:
    fits, largest = cost.largest_micro_batch(workload, device), workload.max_micro_batch
    # A plan's micro-batches are cut by the workload's own limit; where memory allows less, so does the capacity.
    if largest is not None and fits < min(largest, workload.global_batch):
        largest = None
    capacity = fits if largest is None else workload.global_batch
    return DeviceView(
        name=device.name,
        peak_flops=device.peak(workload.dtype),
        memory_bandwidth=device.memory_bandwidth,
        memory_bytes=device.memory_bytes,
        capacity=capacity,
        cost=cost.device_cost(device, workload),
        largest_micro_batch=largest,
    )


@runtime_checkable
class Policy(Protocol):
    """A value with one pure method. It reads no clock, no environment, and holds no state.

    ``allocate`` is called once before the first step (and again at each rebalance point of an adaptive run). It returns
    a plan that :meth:`Plan.check` accepts, or raises :class:`~steelyard.sim.plan.Infeasible` with the reason.
    """

    def allocate(self, view: View) -> Plan:
        """Divide the work."""
        ...


@dataclass(frozen=True)
class Fixed:
    """A policy that always answers the one plan it holds: how a recorded plan is executed again."""

    plan: Plan
    record: PolicyRecord | None = None
    """The policy that made the plan, for the run's record."""

    def allocate(self, view: View) -> Plan:
        """The plan, whatever the view."""
        return self.plan


def allocate(policy: Policy, view: View, scenario: Scenario) -> Plan:
    """Ask a policy for its plan, and judge the answer: every executor asks here.

    Args:
        policy: asked once.
        view: what it sees.
        scenario: what the plan must be valid for.

    Raises:
        Infeasible: the policy has no plan for the scenario.
        PlanError: its answer is no plan, or one that breaks a rule.
    """
    plan: object = policy.allocate(view)
    if not isinstance(plan, Plan):
        problem = f"allocate gave a {type(plan).__name__} and no Plan"
        raise PlanError(f"policy {describe(policy).name}", problem, "return what view.plan(samples) gives")
    plan.check(scenario)
    return plan


def describe(policy: Policy) -> PolicyRecord:
    """Name, parameters and source digest of a policy: what a run records of it."""
    if isinstance(policy, Fixed):
        return policy.record or PolicyRecord(name="fixed", source_sha256=_source_digest(Fixed))
    kind = type(policy)
    parameters: dict[str, Any] = dataclasses.asdict(policy) if dataclasses.is_dataclass(policy) else {}
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    name = getattr(kind, "name", f"{kind.__module__}:{kind.__qualname__}")
    return PolicyRecord(name=name, parameters=parameters, defaults=defaults, source_sha256=_source_digest(kind))


def _source_digest(kind: type) -> str:
    """SHA-256 of the file that defines a class, and of the data files that it names as ``data_files``.

    Those are ``data_files: ClassVar[tuple[str, ...]]``, relative to the file that defines the class: the answer depends
    on them too. Where there is no file (a class defined at a prompt), it is that of the class's name.
    """
    try:
        file = Path(inspect.getfile(kind))
        content = file.read_bytes()
    except (OSError, TypeError):
        return hashlib.sha256(f"{kind.__module__}:{kind.__qualname__}".encode()).hexdigest()
    data = (_data_digest(kind, file.parent / name) for name in getattr(kind, "data_files", ()))
    return hashlib.sha256(content + b"".join(data)).hexdigest()


def _data_digest(kind: type, file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError as error:
        problem = f"names {file.name}, which cannot be read: {error.strerror}"
        raise InputError(f"policy {kind.__qualname__}: data_files", problem, "put it beside the module") from error
