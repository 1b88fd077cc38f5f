"""Datasheet: a lane's device as its maker describes it, from what the system tells and the catalog; nothing is run.

What the system does not tell is assumed, and every assumption is a sentence in the device's ``source``. The figures
are far from what a small operator reaches: that is what the fidelity's error shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..results.errors import InputError
from ..sim.device import Cluster, Device, Link
from ..sim.spec import load_device, shipped_names
from .devices import NamedLane

UNITS = 2
"""Assumed: vector units per core that multiply and add at once (server processors since 2013 have two)."""
ASSUMED_BANDWIDTH_GB_PER_S = 51.2
"""Assumed where the firmware tells nothing: two channels of DDR4-3200, 8 bytes wide."""
ASSUMED_CLOCK_HZ = 2.5e9
LOOPBACK = Link(
    name="loopback",
    latency_us=30,
    bandwidth_gb_per_s=2,
    source={"all": "assumed: TCP over the loopback device of one host"},
)
"""Assumed: no data sheet tells what a process pays to talk to another on its host."""
DMI = Path("/sys/firmware/dmi/entries")
CPUINFO = Path("/proc/cpuinfo")


class Vector(NamedTuple):
    """How wide a core's vector instructions are, and whether one of them multiplies and adds."""

    bits: int
    fused: bool

    def flops_per_cycle(self, dtype_bits: int = 32) -> int:
        """Units x values in a vector x 2 for a multiply-add (without it, each unit does one of the two a cycle)."""
        return UNITS * (self.bits // dtype_bits) * (2 if self.fused else 1)


def vector_of(flags: Sequence[str], cap: str) -> Vector:
    """The widest vectors of a processor's flags that a lane may use."""
    if cap in ("full", "avx512") and "avx512f" in flags:
        return Vector(512, True)
    if cap in ("full", "avx512", "avx2") and "avx2" in flags:
        return Vector(256, "fma" in flags)
    return Vector(128, "asimd" in flags)


def cpu_facts(text: str) -> tuple[list[str], float | None, str]:
    """Flags, clock in Hz (None: not told) and name of the first processor in the text of ``/proc/cpuinfo``."""
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    facts: dict[str, str] = {}
    for key, value in pairs:
        facts.setdefault(key.strip(), value.strip())
    nominal = re.search(r"@ ([\d.]+) ?GHz", facts.get("model name", ""))
    megahertz = facts.get("cpu MHz")
    clock = float(nominal[1]) * 1e9 if nominal else float(megahertz) * 1e6 if megahertz else None
    return (facts.get("flags") or facts.get("Features") or "").split(), clock, facts.get("model name", "processor")


def memory_bandwidth(entries: Path = DMI) -> float | None:
    """Bytes per second of all memory modules by the firmware's table (SMBIOS type 17); None where it cannot be read."""
    total = 0.0
    try:
        for raw in sorted(entries.glob("17-*/raw")):
            total += module_bandwidth(raw.read_bytes())
    except OSError:  # for the administrator's eyes only, on most systems
        return None
    return total or None


def module_bandwidth(raw: bytes) -> float:
    """Bytes per second of a memory module: data width times transfers (SMBIOS type 17, recalled); 0: empty slot."""
    if len(raw) < 0x22:
        return 0.0
    width, size = int.from_bytes(raw[0x0A:0x0C], "little"), int.from_bytes(raw[0x0C:0x0E], "little")
    transfers = int.from_bytes(raw[0x20:0x22], "little") or int.from_bytes(raw[0x15:0x17], "little")
    told = size not in (0, 0xFFFF) and width not in (0, 0xFFFF) and transfers not in (0, 0xFFFF)
    return width / 8 * transfers * 1e6 if told else 0.0


def datasheet_cpu(device: Device, cpuinfo: str, bandwidth: float | None) -> Device:
    """A CPU lane by the textbook formula: cores x clock x FLOPs per cycle."""
    lane = device.lane
    assert lane is not None
    flags, clock, name = cpu_facts(cpuinfo)
    cores = min(lane.threads, lane.core_count)
    vector = vector_of(flags, lane.cap)
    rate = cores * lane.cpu_share * (clock or ASSUMED_CLOCK_HZ) * vector.flops_per_cycle()
    peaks = {"fp32": rate / 1e12}
    if "avx512_bf16" in flags and lane.cap == "full":
        peaks["bf16"] = 2 * rate / 1e12
    told = "of /proc/cpuinfo" if clock else f"assumed {ASSUMED_CLOCK_HZ / 1e9} GHz"
    memory = bandwidth or ASSUMED_BANDWIDTH_GB_PER_S * 1e9
    return Device(
        name=device.name,
        summary=name,
        peak_tflops=peaks,
        memory_gib=device.memory_gib,
        memory_bandwidth_gb_per_s=memory / 1e9,
        slowdown=lane.repeat,
        lane=lane,
        source={
            "peak_tflops": f"{cores * lane.cpu_share:g} cores x clock ({told}) "
            f"x {vector.flops_per_cycle()} FLOP per cycle "
            f"({vector.bits}-bit vectors; {UNITS} units assumed)",
            "memory_bandwidth_gb_per_s": "memory modules by the firmware's table"
            if bandwidth
            else "assumed: two channels of DDR4-3200",
            "memory_gib": "measured",
            "efficiency": "Calculon's table for an A100: assumed",
        },
    )


def catalog_name(gpu: str, names: Sequence[str]) -> str | None:
    """The catalog's entry for a GPU as its driver names it ("NVIDIA A100-SXM4-80GB"): most words in common wins."""
    words = set(re.sub(r"(sxm|pcie)\d*", r"\1", re.sub(r"[^a-z0-9]+", " ", gpu.lower())).split())
    fitting = [name for name in names if set(name.split("-")) <= words]
    return max(fitting, key=len, default=None)


def datasheet_gpu(device: Device, gpu: str) -> Device:
    """A GPU lane as the catalog has it.

    Raises:
        InputError: the catalog does not know it.
    """
    found = catalog_name(gpu, shipped_names("catalog/devices"))
    if found is None:
        raise InputError(f"device {device.name}", f"{gpu!r} is not in the catalog", "no datasheet prediction is made")
    return load_device(found).model_copy(update={"name": device.name, "lane": device.lane})


def datasheet_cluster(cluster: Cluster, gpus: Mapping[str, str]) -> Cluster:
    """A cluster of lanes with nothing measured left in it: data sheets, and a loopback that is assumed.

    Args:
        cluster: of lanes.
        gpus: the name of each GPU by its torch device.
    """
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    bandwidth = memory_bandwidth()

    def sheet(device: Device) -> Device:
        if device.lane is None or device.lane.torch_device == "cpu":
            return datasheet_cpu(device, text, bandwidth)
        return datasheet_gpu(device, gpus.get(device.lane.torch_device, ""))

    nodes = [
        node.model_copy(update={"devices": [sheet(device) for device in node.devices], "link": LOOPBACK})
        for node in cluster.nodes
    ]
    return cluster.model_copy(update={"nodes": nodes, "collectives": []})


def lanes_gpus(lanes: Sequence[NamedLane], names: Sequence[str]) -> dict[str, str]:
    """Names of GPUs by torch device, in the order in which the system lists them."""
    return {lane.torch_device: names[number] for lane in lanes for number in _number(lane, names)}


def _number(lane: NamedLane, names: Sequence[str]) -> list[int]:
    number = int(lane.torch_device.partition(":")[2] or 0)
    return [number] if lane.torch_device.startswith("cuda") and number < len(names) else []
