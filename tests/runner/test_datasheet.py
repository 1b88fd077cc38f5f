"""Datasheet: the textbook formula on texts of real processors, the firmware's table by its bytes, names of GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
from steelyard.runner.datasheet import (
    ASSUMED_BANDWIDTH_GB_PER_S,
    catalog_name,
    cpu_facts,
    datasheet_cpu,
    memory_bandwidth,
    module_bandwidth,
    vector_of,
)
from steelyard.sim.device import Device, Lane
from steelyard.sim.spec import shipped_names

CPUINFO = """processor\t: 0
model name\t: Intel(R) Xeon(R) Gold 6148 CPU @ 2.40GHz
cpu MHz\t\t: 3100.000
flags\t\t: fpu sse sse2 fma avx2 avx512f

processor\t: 1
model name\t: Another CPU @ 9.99GHz
"""


def device(**lane: object) -> Device:
    return Device(
        name="lane",
        peak_tflops={"fp32": 1.0},
        memory_gib=4,
        memory_bandwidth_gb_per_s=10,
        lane=Lane.model_validate(lane),
    )


def test_peak_is_cores_times_clock_times_vectors() -> None:
    """A Gold 6148 core: 2.4 GHz x 2 units x 16 values x 2 = 153.6 GFLOP/s in fp32."""
    sheet = datasheet_cpu(device(cpus=[0, 1], threads=2), CPUINFO, 100e9)
    assert sheet.peak("fp32") == pytest.approx(2 * 153.6e9)
    assert sheet.memory_bandwidth == pytest.approx(100e9)
    assert sheet.profile is None
    assert sheet.layer_profile is None


@pytest.mark.parametrize(("cap", "per_cycle"), [("full", 64), ("avx2", 32), ("sse", 8)])
def test_a_cap_narrows_the_vectors(cap: str, per_cycle: int) -> None:
    flags, clock, _ = cpu_facts(CPUINFO)
    assert vector_of(flags, cap).flops_per_cycle() == per_cycle
    assert clock == pytest.approx(2.4e9)


def test_what_is_not_told_is_assumed_and_the_assumption_is_named() -> None:
    sheet = datasheet_cpu(device(), "", None)
    assert sheet.memory_bandwidth_gb_per_s == ASSUMED_BANDWIDTH_GB_PER_S
    assert "assumed" in sheet.source["memory_bandwidth_gb_per_s"]
    assert "assumed" in sheet.source["peak_tflops"]


def module(width: int, size: int, speed: int, configured: int) -> bytes:
    raw = bytearray(0x28)
    for place, value in ((0x0A, width), (0x0C, size), (0x15, speed), (0x20, configured)):
        raw[place : place + 2] = value.to_bytes(2, "little")
    return bytes(raw)


def test_memory_modules_add_up_and_empty_slots_count_nothing(tmp_path: Path) -> None:
    for number, raw in enumerate([module(64, 16384, 3200, 2933), module(64, 0, 0, 0), module(64, 16384, 3200, 0)]):
        (tmp_path / f"17-{number}").mkdir()
        (tmp_path / f"17-{number}" / "raw").write_bytes(raw)
    assert memory_bandwidth(tmp_path) == pytest.approx(8 * 2933e6 + 8 * 3200e6)
    assert memory_bandwidth(tmp_path / "none") is None
    assert module_bandwidth(b"short") == 0.0


@pytest.mark.parametrize(
    ("driver", "entry"),
    [
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm-80gb"),
        ("Tesla V100-SXM2-16GB", None),
        ("Voodoo 2", None),
    ],
)
def test_a_gpu_is_found_in_the_catalog_by_its_drivers_name(driver: str, entry: str | None) -> None:
    assert catalog_name(driver, shipped_names("catalog/devices")) == entry
