"""Device, Link, Cluster: what computes, the ways between, and what was measured of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from .workload import Count, Dtype, Facts, Name, NonNegative, Positive, Share, Spec, not_tiny

GIB = 2**30
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), AfterValidator(not_tiny)]
Residual = Annotated[float, Field(gt=-1, le=1e6, allow_inf_nan=False)]


class EfficiencyStep(Spec):
    """Work of at least this size reaches this share of the peak."""

    at_least: NonNegative
    """FLOPs (compute tables) or bytes (memory tables) of one operator."""
    share: Fraction


class Saturation(Spec):
    """Share of the peak that grows with an operator's work ``w`` towards ``best``: best w / (w + half)."""

    best: Fraction
    """Share of the peak that a very large operator reaches."""
    half_us: NonNegative = 0.0
    """A kernel whose work takes so long at the peak reaches half of the best share: what is lost to filling the
    device and draining it does not depend on its size."""
    fitted_to: str = ""
    """Measurements that the two figures were fitted to; empty: assumed."""

    @property
    def half_s(self) -> float:
        """``half_us`` in seconds."""
        return self.half_us * 1e-6


Efficiency = list[EfficiencyStep] | Saturation
"""Share of the peak by size: a table, interpolated in the logarithm of the size, or a curve that saturates."""

# Isaev et al. 2023 (Calculon), the A100 example: share of the peak by the operator's size.
CALCULON_COMPUTE = (
    EfficiencyStep(at_least=128e9, share=0.95),
    EfficiencyStep(at_least=16e9, share=0.90),
    EfficiencyStep(at_least=1e9, share=0.60),
    EfficiencyStep(at_least=0, share=0.10),
)
CALCULON_MEMORY = (
    EfficiencyStep(at_least=100e6, share=0.90),
    EfficiencyStep(at_least=10e6, share=0.75),
    EfficiencyStep(at_least=1e6, share=0.60),
    EfficiencyStep(at_least=0, share=0.30),
)


class ProfilePoint(Spec):
    """Median time of one micro-batch of one size, measured on a device."""

    micro_batch: Count
    forward_s: Positive
    backward_s: Positive
    steps: Count = 1


class WakePoint(Spec):
    """What a step costs more when its device was blocked in a collective before it."""

    blocked_s: Positive
    """From its own entry to its exit: the wait for the others, and the collective."""
    extra_s: NonNegative
    micro_batch: Count | None = None
    """Size of the steps that it was measured with: not for plans that use it."""


class GaugedSize(Spec):
    """What the steps of a size took when the lane was gauged at all sizes."""

    micro_batch: Count
    bias: Positive
    """How many times as long as the table says, the lane's speed over all sizes apart."""


class Profile(Spec):
    """What was measured of one workload on one device."""

    workload: Name
    """:attr:`Workload.key` of the workload that ran."""
    points: Annotated[list[ProfilePoint], Field(min_length=2, max_length=10_000)]
    optimizer_s: Positive
    rest_s: NonNegative = 0.0
    """Of each step, what is in no pass, collective or update: the loop, the next samples, gradients put in place."""
    step_residuals: list[Residual] = Field(default_factory=lambda: [0.0])
    """measured / fitted - 1 of single compute segments within a launch: the noise of a step."""
    launch_residuals: list[Residual] = Field(default_factory=lambda: [0.0])
    """The same of whole launches: how far one fresh process is from the next."""
    gauged: list[GaugedSize] = Field(default_factory=list)
    """What later gauges are held against beside the table; predictions do not know it."""
    launch_groups: Count = 1
    """So many of these in a row are of one launch."""
    waking: list[WakePoint] = Field(default_factory=list)
    """Empty: the device does not slow down by sleeping."""
    forward_factor: Positive = 1.0
    """What the points' forward times were multiplied by when plans that ran refined them; 1: they are as measured."""
    backward_factor: Positive = 1.0

    def waking_at(self, slowdown: float) -> Sequence[WakePoint]:
        """What waking costs a device whose work takes so many times as long as its table says.

        The extra is work (caches to fill again, at a clock that is still low), so it takes as many times as long; for
        how long a wait lasts, and what a wait does to the clock, the device's own speed is nothing.
        """
        if slowdown == 1.0:
            return self.waking
        return [point.model_copy(update={"extra_s": slowdown * point.extra_s}) for point in self.waking]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        sizes = [point.micro_batch for point in self.points]
        if len(set(sizes)) != len(sizes):
            raise ValueError("two points have the same micro_batch; keep one")
        return self


class LayerPoint(Spec):
    """Median times of every layer for one micro-batch size and tensor-parallel degree, measured on a device."""

    micro_batch: Count
    tensor_degree: Count = 1
    forward_s: Annotated[list[NonNegative], Field(min_length=1, max_length=100_000)]
    backward_s: Annotated[list[NonNegative], Field(min_length=1, max_length=100_000)]
    optimizer_s: Annotated[list[NonNegative], Field(min_length=1, max_length=100_000)]

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if not len(self.forward_s) == len(self.backward_s) == len(self.optimizer_s):
            raise ValueError("forward_s, backward_s and optimizer_s differ in length; each has one entry per layer")
        return self


class StagePass(Spec):
    """What a pass of a pipeline's stage takes beyond its layers: handing on, and what the schedule does for it."""

    micro_batch: Count
    """Size of the micro-batches that it was measured with: not for plans that use it."""
    forward_s: NonNegative
    backward_s: NonNegative


class LayerProfile(Spec):
    """What was measured of one model on one device, layer by layer."""

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    model: Name
    """Name of the model that ran; its layers are the workload's, one entry each."""
    sequence_length: Count
    dtype: Dtype
    points: Annotated[list[LayerPoint], Field(min_length=1, max_length=10_000)]
    tensor_collectives: bool = True
    """Whether the times hold the collectives of the tensor-parallel group."""
    fidelity: Literal["profiled", "calibrated"] = "profiled"
    """Whether the model ran, or its times were put together from those of its operators (see :mod:`.operators`)."""
    guessed_share: Share = 0.0
    """Of calibrated times, the share of operators whose kind or size was not measured."""
    step_residuals: list[Residual] = Field(default_factory=lambda: [0.0])
    launch_residuals: list[Residual] = Field(default_factory=lambda: [0.0])
    """measured / fitted - 1 of whole launches, or of other models' passes where this one never ran."""
    stage_pass: StagePass | None = None
    """None: a stage takes what its layers take."""
    source: str = ""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({(point.micro_batch, point.tensor_degree) for point in self.points}) != len(self.points):
            raise ValueError("two points have the same micro_batch and tensor_degree; keep one")
        if len({len(point.forward_s) for point in self.points}) > 1:
            raise ValueError("the points have different numbers of layers; all measure the same model")
        return self


class Wire(Spec):
    """How a lane is joined to the others: which made host it is on, and how the links of that are held back."""

    host: Annotated[str, Field(max_length=64)] = ""
    """Lanes of one name share a host that is made of namespaces; empty: this very host, over loopback."""
    link_mbit_per_s: NonNegative = 0.0
    """The lane's own way to its host's switch, in each direction; 0: not held back."""
    link_latency_us: NonNegative = 0.0
    uplink_mbit_per_s: NonNegative = 0.0
    """The host's way to the other hosts, which its lanes share; equal for all of them."""
    uplink_latency_us: NonNegative = 0.0


class Lane(Spec):
    """How a device is had on this host: which processor, with which instruction sets, how many threads."""

    torch_device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    cap: Literal["full", "avx512", "avx2", "sse"] = "full"
    """Instruction sets that the worker process may use."""
    cpus: list[Annotated[int, Field(ge=0, le=65_535)]] = Field(default_factory=list)
    """Cores that the worker is pinned to; empty: not pinned."""
    threads: Annotated[int, Field(ge=1, le=4096)] = 1
    repeat: Annotated[int, Field(ge=1, le=64)] = 1
    """Each micro-batch's forward and backward is done so many times: the fallback that makes a lane slower."""
    cpu_share: Fraction = 1.0
    """Share of its cores' time that a quota leaves it; 1: no quota. What speed that gives is measured."""
    cpu_period_us: Annotated[int, Field(ge=1_000, le=1_000_000)] = 5_000
    """How often the quota is renewed: longer periods make steps uneven, shorter ones cost more switching."""
    memory_limit_gib: NonNegative = 0.0
    """Memory beyond which its process is killed; 0: no limit of its own."""
    shares_core: bool = False
    """Whether another lane of the cluster runs on a core of this one: such lanes are judged apart."""
    wire: Wire = Wire()
    machine: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Which of the machines of a study over several it is on; 0: the one that drives."""

    @property
    def core_count(self) -> int:
        """How many cores it runs on: those it is pinned to, else one a thread."""
        return len(self.cpus) or self.threads

    @property
    def quota_cores(self) -> float:
        """So many cores' time is the lane's: its cores, times its share."""
        return self.cpu_share * self.core_count


class Device(Spec):
    """Something that computes. Times and sizes in SI are properties; the fields carry their unit in the name."""

    name: Name
    summary: str = ""
    peak_tflops: dict[str, Positive]
    """Dense peak per dtype, in 10^12 FLOP/s."""
    memory_gib: Positive
    memory_bandwidth_gb_per_s: Positive
    launch_overhead_us: NonNegative = 4.0
    """Time per kernel that no operator hides."""
    dispatch_us: NonNegative = 0.0
    """Time of the host per kernel. It runs ahead of the device: a layer takes the longer of the two times."""
    compute_efficiency: Efficiency = Field(default_factory=lambda: list(CALCULON_COMPUTE))
    memory_efficiency: Efficiency = Field(default_factory=lambda: list(CALCULON_MEMORY))
    overhead_gib: NonNegative = 0.0
    """Memory that the framework takes before the model's first byte."""
    idle_w: NonNegative | None = None
    max_w: Positive | None = None
    communication_power_share: Share = 0.5
    """Share of the dynamic power (max less idle) while only communicating: 0.5 is an assumption, not a measurement."""
    price_usd_per_hour: NonNegative | None = None
    mtbf_hours: Positive | None = None
    """Mean time between failures of this one device; None: it does not fail."""
    preemptions_per_hour: NonNegative = 0.0
    """How often its owner takes a spot device away."""
    slowdown: Positive = 1.0
    """Its work takes so many times as long as its figures say: a straggler is above 1."""
    sum_slowdown: Annotated[float, Field(ge=1)] = 1.0
    """Collectives that it takes part in take so many times as long: of a lane that is slowed down under way."""
    overlaps: bool = True
    """Whether collectives run beside compute (a lane's share its cores with it, so they do not)."""
    ranges: dict[str, Annotated[list[NonNegative], Field(min_length=2, max_length=2)]] = Field(default_factory=dict)
    """Lowest and highest value of a figure where sources differ."""
    source: dict[str, str] = Field(default_factory=dict)
    """Where each figure is from; "recalled": nobody opened the source."""
    lane: Lane | None = None
    profile: Profile | None = None
    layer_profile: LayerProfile | None = None

    @property
    def overlapping(self) -> bool:
        """Whether collectives run beside compute here."""
        return self.overlaps and self.lane is None

    @property
    def sums_itself(self) -> bool:
        """Whether its own processor does its part of a collective, and takes longer for it when it is slowed down."""
        return self.lane is not None and self.lane.torch_device == "cpu"

    @property
    def memory_bytes(self) -> float:
        """Bytes that the model may use: memory less the framework's overhead."""
        return (self.memory_gib - self.overhead_gib) * GIB

    @property
    def memory_bandwidth(self) -> float:
        """Bytes per second between the device and its memory."""
        return self.memory_bandwidth_gb_per_s * 1e9

    def peak(self, dtype: str) -> float:
        """Peak FLOP/s in a dtype; a dtype that the device does not list runs at its fp32 (else its smallest) rate."""
        rates = self.peak_tflops
        if dtype in rates:
            return 1e12 * rates[dtype]
        return 1e12 * rates.get("fp32", min(rates.values()))

    @model_validator(mode="after")
    def _some_peak(self) -> Self:
        if not self.peak_tflops:
            raise ValueError("peak_tflops is empty; name at least one dtype, for example fp32")
        if self.overhead_gib >= self.memory_gib:
            raise ValueError("overhead_gib leaves no memory; it must be less than memory_gib")
        return self


class Link(Spec):
    """A way between devices: each device on it sends and receives at its bandwidth, unless it is shared."""

    name: Name
    latency_us: NonNegative
    bandwidth_gb_per_s: Positive
    """10^9 bytes per second in one direction (of an uplink: up, away from the device)."""
    reverse_bandwidth_gb_per_s: Positive | None = None
    """The other direction (of an uplink: down, towards the device); None: the same."""
    shared: bool = False
    """One medium for all devices on it, in both directions (a bus); else each has its own way to a switch."""
    efficiency: Fraction = 1.0
    """Share of the nominal bandwidth that a large message reaches."""
    source: dict[str, str] = Field(default_factory=dict)

    @property
    def latency_s(self) -> float:
        """Seconds per message."""
        return self.latency_us * 1e-6

    @property
    def bandwidth(self) -> float:
        """Bytes per second that a large message reaches."""
        return self.bandwidth_gb_per_s * 1e9 * self.efficiency

    @property
    def reverse_bandwidth(self) -> float:
        """The same in the other direction."""
        return (self.reverse_bandwidth_gb_per_s or self.bandwidth_gb_per_s) * 1e9 * self.efficiency


CollectiveKind = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "point_to_point"]


class CollectivePoint(Spec):
    """Time of one collective of one size."""

    bytes: Count
    seconds: Positive


class CollectiveTable(Spec):
    """A collective measured over the named devices, or over so many like ranks: a table of its time by size."""

    kind: CollectiveKind = "all_reduce"
    backend: Name
    devices: Annotated[list[Name], Field(max_length=100_000)] = Field(default_factory=list)
    """Those that took part; empty: like ones, so many as ``ranks`` says."""
    ranks: Annotated[int, Field(ge=2, le=2**31)] | None = None
    """Devices that took part, where they are none of the cluster's own."""
    nodes: Count = 1
    """Machines that the ``ranks`` were on, equally many on each."""
    points: Annotated[list[CollectivePoint], Field(min_length=2, max_length=10_000)]
    step_residuals: list[Residual] = Field(default_factory=lambda: [0.0])
    apart_step_residuals: list[Residual] = Field(default_factory=list)
    """The same as it was timed apart, where ``step_residuals`` are those of steps of the model."""
    launch_residuals: list[Residual] = Field(default_factory=lambda: [0.0])
    step_factor: Positive = 1.0
    """What the times were multiplied by because steps of the model showed it; 1: they are as timed, apart from it."""
    source: str = ""

    def scaled(self, factor: float) -> Self:
        """The table of a collective that takes so many times as long."""
        points = [point.model_copy(update={"seconds": factor * point.seconds}) for point in self.points]
        return self.model_copy(update={"points": points})

    def within_steps(self, factor: float, residuals: Sequence[float] = ()) -> Self:
        """The table of a collective that takes so many times as long in steps of the model, with such a spread."""
        spread = {"step_residuals": list(residuals), "apart_step_residuals": self.step_residuals} if residuals else {}
        return self.scaled(factor).model_copy(update={"step_factor": factor * self.step_factor, **spread})

    def apart(self) -> Self:
        """The table as it was timed, without what steps of the model showed."""
        residuals = self.apart_step_residuals or self.step_residuals
        update = {"step_factor": 1.0, "step_residuals": residuals, "apart_step_residuals": []}
        return self.scaled(1 / self.step_factor).model_copy(update=update)

    @model_validator(mode="after")
    def _who(self) -> Self:
        if (self.ranks is None) == (not self.devices):
            raise ValueError("needs either devices (the cluster's own) or ranks (so many like ones)")
        if self.ranks is None and len(set(self.devices)) < 2:
            raise ValueError("devices has fewer than two different names; a collective takes two")
        if self.ranks is not None and self.nodes > self.ranks:
            raise ValueError(f"nodes is {self.nodes}, more than the {self.ranks} ranks on them")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({point.bytes for point in self.points}) != len(self.points):
            raise ValueError("two points have the same bytes; keep one")
        return self


class Node(Spec):
    """One machine: its devices and the link between them."""

    name: Name
    devices: Annotated[list[Device], Field(min_length=1, max_length=100_000)]
    link: Link
    network: Link | None = None
    """The machine's own way to the network; None: the cluster's."""
    nics: Count = 1
    """Network adapters; the devices are dealt to them in order, those of one adapter share it."""
    switch: Name | None = None
    """The switch that its adapters are on; None: the network's core."""
    loader_samples_per_s: Positive | None = None
    """Samples per second that its input pipeline delivers to all its devices; None: never the bottleneck."""
    mtbf_hours: Positive | None = None
    """Mean time between failures of the whole machine (beside those of its devices)."""


class Switch(Spec):
    """A switch between machines: what goes past it shares its uplink (oversubscription is a thin uplink)."""

    name: Name
    uplink: Link
    parent: Name | None = None
    """The switch above; None: the network's core, which carries everything."""


class Cluster(Spec):
    """Machines, the network between them, and collectives that were measured over them."""

    nodes: Annotated[list[Node], Field(min_length=1, max_length=100_000)]
    network: Link | None = None
    switches: Annotated[list[Switch], Field(max_length=100_000)] = Field(default_factory=list)
    backend: Literal["nccl", "gloo"] = "nccl"
    """Whose collective algorithms are modelled."""
    collectives: list[CollectiveTable] = Field(default_factory=list)
    fingerprint: Facts = Field(default_factory=dict)
    """The hardware and software that measured tables belong to; empty for a cluster from the catalog."""
    fitted_from: Annotated[list[Name], Field(max_length=100_000)] = Field(default_factory=list)
    """Ids of the measured runs that the tables were refined by: they cannot judge what these tables predict."""
    fitted_plans: Annotated[list[Name], Field(max_length=100_000)] = Field(default_factory=list)
    """SHA-256 of those runs' plans: measured once more, they judge a fit all the same."""

    def changed(self, change: Callable[[Device], Device]) -> Self:
        """The cluster with every device as something makes it of what it is."""
        nodes = [node.model_copy(update={"devices": list(map(change, node.devices))}) for node in self.nodes]
        return self.model_copy(update={"nodes": nodes})

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """All devices, node by node."""
        return tuple(device for node in self.nodes for device in node.devices)

    @cached_property
    def by_name(self) -> dict[str, Device]:
        """The devices by their names."""
        return {device.name: device for device in self.devices}

    @cached_property
    def node_of(self) -> dict[str, int]:
        """Per device, the number of its machine."""
        return {device.name: number for number, node in enumerate(self.nodes) for device in node.devices}

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Per device, a number that is equal for devices that differ in nothing but the name."""
        numbers: dict[str, int] = {}
        seen: dict[tuple[int, ...], int] = {}
        known: dict[str, int] = {}
        figures = itemgetter(*sorted(Device.model_fields.keys() - {"name"}))
        for device in self.devices:
            # Devices of one counted entry share their values: identity finds them without reading all fields.
            parts = tuple(map(id, figures(device.__dict__)))
            if parts not in seen:
                seen[parts] = known.setdefault(device.model_dump_json(exclude={"name"}), len(known))
            numbers[device.name] = seen[parts]
        return numbers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = Counter(device.name for device in self.devices)
        name, times = names.most_common(1)[0]
        if times > 1:
            raise ValueError(f"two devices are named {name!r}; give each entry its own name")
        if len(self.nodes) > 1 and self.network is None:
            lacking = [node.name for node in self.nodes if node.network is None]
            if lacking:
                raise ValueError("several nodes need a network link; add [cluster.network]")
        self._check_switches()
        unknown = sorted({name for table in self.collectives for name in table.devices} - set(names))
        if unknown:
            raise ValueError(
                f"a collective table names {unknown[0]!r}, which is no device of the cluster; remove the table"
            )
        return self

    def _check_switches(self) -> None:
        parents = {switch.name: switch.parent for switch in self.switches}
        if len(parents) != len(self.switches):
            raise ValueError("two switches have the same name; give each its own")
        named = [node.switch for node in self.nodes] + list(parents.values())
        unknown = next((name for name in named if name is not None and name not in parents), None)
        if unknown is not None:
            raise ValueError(f"there is no switch {unknown!r}; add it to cluster.switches")
        for start, parent in parents.items():
            way, at = [start], parent
            while at is not None:
                if at in way:
                    raise ValueError(f"the switches {' -> '.join([*way, at])} form a circle; one must have no parent")
                way.append(at)
                at = parents[at]
