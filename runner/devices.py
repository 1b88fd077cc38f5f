"""Lanes: what this host can offer as torch devices, made truly different where it has only one kind of core.

On a CPU alone, a lane is a worker process pinned to a core (or several) and held to a set of vector instructions: fp32
products are MKL's, bf16 products oneDNN's and vector kernels ATen's, so three variables say it, and they must be set
before torch is imported. MKL ignores its variable on processors that are not Intel's; there its conditional numerical
reproducibility mode, in its slowest setting, does the same work for the narrowest lane.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ..sim.device import Lane
from ..sim.workload import Name

CAPABILITY = {
    "full": ("AVX512", "AVX2", "DEFAULT"),
    "avx512": ("AVX512",),
    "avx2": ("AVX2",),
    "sse": ("DEFAULT", "NO AVX"),
}
"""What ``torch.backends.cpu.get_cpu_capability()`` may answer under each cap."""

GPU_SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of a GPU's driver: NVIDIA's, that of Windows' subsystem for Linux, AMD's; without one torch is not asked."""
FALLBACK_REPEAT = 2
TOOK_EFFECT = 0.9
"""A cap counts as a different device when its training speed is at most this share of the uncapped one."""
CPU_GROUPS = 4
"""Lanes that the cores of a host are divided into, at most."""


class NamedLane(Lane):
    """A lane and the name that its device has in the cluster."""

    name: Name


Probe = Callable[[Sequence[NamedLane]], Sequence[Mapping[str, Any]]]
"""Measures lanes: one answer of the worker's ``figures`` task for each."""


@dataclass(frozen=True)
class Offer:
    """One lane that this host could have: what was measured of it, and whether it is offered."""

    lane: NamedLane
    offered: bool
    reason: str
    """Why it is offered or not, in a sentence."""
    capability: str = ""
    product_flops: float = 0.0
    """fp32 matrix products, FLOP/s."""
    copy_bytes_per_s: float = 0.0
    """Bytes read and written per second by a copy out of cache."""
    training_rate: float = 0.0
    """Steps per second of a small training step: what lanes are compared by."""
    memory_bytes: float = 0.0
    """Memory of the GPU, or of the host, which all its CPU lanes share."""

    def row(self, full: float) -> dict[str, Any]:
        """The offer as one JSON row; ``full`` is the training rate that the ratio is taken to."""
        return {
            "name": self.lane.name,
            "summary": f"{self.lane.torch_device}, {self.lane.cap} instructions, cores {self.lane.cpus or 'any'}",
            "source": "measured on this host",
            "offered": self.offered,
            "reason": self.reason,
            "parameters": self.lane.model_dump(mode="json", exclude={"name"}),
            "capability": self.capability,
            "product_gflop_per_s": self.product_flops / 1e9,
            "copy_gb_per_s": self.copy_bytes_per_s / 1e9,
            "ratio_to_full": self.training_rate / full if full else 0.0,
        }


def cap_environment(cap: str, vendor: str) -> dict[str, str]:
    """The variables that hold a process to an instruction set; they must be set before torch is imported."""
    if cap == "avx512":  # all but what came after it for bf16 and int8: in fp32 the same device as an uncapped one
        return {
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
            "ATEN_CPU_CAPABILITY": "avx512",
        }
    if cap == "avx2":
        return {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    if cap == "sse":
        narrow = {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}
        return narrow if vendor == "GenuineIntel" else {**narrow, "MKL_CBWR": "COMPATIBLE"}
    return {}


def cpu_vendor() -> str:
    """The processor's vendor as it names itself ("GenuineIntel", "AuthenticAMD"), else the machine's architecture."""
    return _cpuinfo("vendor_id") or platform.machine()


def fingerprint() -> dict[str, Any]:
    """What measured tables depend on: processor, cores, memory, operating system, Python, torch."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": len(available_cpus()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "gpus": gpu_names(),
    }


def available_cpus() -> list[int]:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def backend_of(torch_devices: Iterable[str]) -> str:
    """The library that lanes of these devices speak through: ``nccl`` where all are GPUs, else ``gloo``."""
    return "nccl" if all(device.startswith("cuda") for device in torch_devices) else "gloo"


def passes_on(torch_devices: Iterable[str]) -> bool:
    """Whether stages on lanes of these devices can hand on what they computed: gloo sends no tensor of a GPU."""
    devices = list(torch_devices)
    return backend_of(devices) == "nccl" or not any(device.startswith("cuda") for device in devices)


def candidate_lanes(gpus: Sequence[str] | None = None) -> list[NamedLane]:
    """The lanes worth measuring on this host, fastest first; which of them are offered, :func:`measure_lanes` says.

    Two GPUs or more are lanes by themselves: with a processor beside them their tensors would go over gloo, which sends
    none of a GPU from peer to peer. A single GPU has the processor beside it.

    Args:
        gpus: names of the GPUs; by default those of this host.
    """
    gpus = gpu_names() if gpus is None else gpus
    own = [NamedLane(name=f"cuda{number}", torch_device=f"cuda:{number}", cpus=[]) for number in range(len(gpus))]
    groups = cpu_groups(available_cpus(), 1 if own else CPU_GROUPS)
    if own:
        return own if len(own) > 1 else [*own, _cpu_lane("cpu", "full", groups[0])]
    if len(groups) == 1:
        groups = groups * 2  # a single core is shared by two lanes: the loop still works, the noise is high
    caps = ("full", "sse", "avx2", "full")
    counted: dict[str, int] = {}
    lanes = []
    for group, cap in zip(groups, caps, strict=False):
        counted[cap] = counted.get(cap, 0) + 1
        lanes.append(_cpu_lane(cap if counted[cap] == 1 else f"{cap}-{counted[cap]}", cap, group))
    if "avx2" not in counted:
        lanes.append(_cpu_lane("avx2", "avx2", groups[-1]))
    return lanes


def cpu_groups(cpus: Sequence[int], most: int) -> list[list[int]]:
    """The cores in at most so many groups of equal size (what does not divide is left unused)."""
    count = max(1, min(most, len(cpus)))
    size = len(cpus) // count
    return [list(cpus[index * size : (index + 1) * size]) for index in range(count)]


def mark_shared(lanes: Sequence[NamedLane]) -> list[NamedLane]:
    """The lanes, marked where another runs on one of their cores."""
    users: dict[int, int] = {}
    for lane in lanes:
        for cpu in lane.cpus:
            users[cpu] = users.get(cpu, 0) + 1
    return [lane.model_copy(update={"shares_core": any(users[cpu] > 1 for cpu in lane.cpus)}) for lane in lanes]


def require_capabilities(lanes: Sequence[NamedLane], where: str) -> None:
    """Refuse quotas, limits and wires that this host does not have; where no lane asks for any, nothing is probed.

    Raises:
        InputError: a lane asks for one, by its path below ``where``.
    """
    from .isolation.capabilities import this_host
    from .isolation.room import asks, refuse_unavailable

    if any(asks(lane) for lane in lanes):
        refuse_unavailable(lanes, this_host(), where)


def measure_lanes(lanes: Sequence[NamedLane], probe: Probe | None = None) -> list[Offer]:
    """Start every lane, verify that its cap took, measure it, and decide whether it is offered.

    A cap that does nothing is not offered; where nothing that differs from the first lane is left, a stated fallback
    (the same device, each micro-batch done twice) takes the place of a lane that was refused.

    Args:
        lanes: what to measure.
        probe: measures lanes, one answer each; by default :func:`steelyard.runner.launch.probe_lanes`.
    """
    if probe is None:
        from .launch import probe_lanes

        probe = probe_lanes
    probes = probe(lanes)
    full = max(each["training_rate"] for each in probes)
    offers = [_judge(lane, each, full) for lane, each in zip(lanes, probes, strict=True)]
    if not any(offer.offered and _differ(offer.lane, lanes[0]) for offer in offers[1:]):
        offers.append(_fallback(next((offer for offer in offers if not offer.offered), offers[-1])))
    return offers


def default_lanes(
    declared: Sequence[NamedLane] = (),
    probe: Probe | None = None,
    further: Sequence[Sequence[NamedLane]] = (),
) -> tuple[list[NamedLane], list[Offer]]:
    """The lanes of the default cluster, and what was measured of every candidate.

    Args:
        declared: lanes by hand; all of them are taken, measured but not judged.
        probe: as in :func:`measure_lanes`.
        further: the candidates of further machines; each machine's are judged among themselves.
    """
    if declared:
        lanes = list(declared)
        judged = measure_lanes(lanes, probe)[: len(lanes)]
        return lanes, [replace(offer, offered=True, reason=f"by hand: {offer.reason}") for offer in judged]
    chosen: list[NamedLane] = []
    offers: list[Offer] = []
    for candidates in (candidate_lanes(), *further):
        own = measure_lanes(candidates, probe)
        offers += own
        chosen += _chosen(own)
    return chosen, offers


def _chosen(offers: Sequence[Offer]) -> list[NamedLane]:
    """The lanes of one machine's default cluster: those offered, each on cores of its own where that gives two."""
    used: set[int] = set()
    chosen = []
    for offer in offers:
        cores = set(offer.lane.cpus)
        if offer.offered and not cores & used:
            chosen.append(offer.lane)
            used |= cores
    if len(chosen) < 2:  # a single core, or nothing but the fallback beside the first
        chosen = mark_shared([offer.lane for offer in offers if offer.offered][:2])
    return chosen


def _differ(lane: NamedLane, other: NamedLane) -> bool:
    """Whether two lanes are different devices, and not the same one on other cores."""
    return (lane.torch_device, lane.cap, lane.repeat) != (other.torch_device, other.cap, other.repeat)


def _judge(lane: NamedLane, probe: Mapping[str, Any], full: float) -> Offer:
    figures = {
        "capability": probe["capability"],
        "product_flops": probe["product_flops"],
        "copy_bytes_per_s": probe["copy_bytes_per_s"],
        "training_rate": probe["training_rate"],
        "memory_bytes": probe["memory_bytes"],
    }
    ratio = probe["training_rate"] / full
    if lane.cap == "full" or lane.torch_device != "cpu":
        return Offer(lane, True, "the device as it is", **figures)
    if probe["capability"] not in CAPABILITY[lane.cap]:
        return Offer(lane, False, f"the cap did not take: torch still says {probe['capability']}", **figures)
    if ratio > TOOK_EFFECT:
        return Offer(lane, False, f"the cap does nothing on this processor ({ratio:.2f} of full speed)", **figures)
    return Offer(lane, True, f"the cap took: {ratio:.2f} of full speed", **figures)


def _fallback(refused: Offer) -> Offer:
    """The lane for hosts whose caps do nothing: the cores of a refused lane, every micro-batch done twice."""
    lane = NamedLane(
        name="repeat",
        torch_device="cpu",
        cap="full",
        cpus=refused.lane.cpus,
        threads=refused.lane.threads,
        repeat=FALLBACK_REPEAT,
    )
    reason = f"fallback: no cap makes a different device here, so each micro-batch is done {FALLBACK_REPEAT} times"
    return Offer(
        lane,
        True,
        reason,
        capability=refused.capability,
        product_flops=refused.product_flops / FALLBACK_REPEAT,
        copy_bytes_per_s=refused.copy_bytes_per_s,
        training_rate=refused.training_rate / FALLBACK_REPEAT,
        memory_bytes=refused.memory_bytes,
    )


def _cpu_lane(name: str, cap: str, cpus: list[int]) -> NamedLane:
    pinned = cpus if hasattr(os, "sched_setaffinity") else []
    return NamedLane.model_validate({"name": name, "cap": cap, "cpus": pinned, "threads": max(1, len(cpus))})


def gpu_names() -> list[str]:
    """Names of the CUDA devices; none where torch is missing or has no CUDA. Imports torch only where a driver is."""
    if not any(Path(sign).exists() for sign in GPU_SIGNS):
        return []
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
