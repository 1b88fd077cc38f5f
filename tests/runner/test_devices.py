"""Lanes: which are worth measuring, how a cap is judged, what a lane file may say. Probes are passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.runner.declared import read_lanes
from steelyard.runner.devices import (
    CAPABILITY,
    FALLBACK_REPEAT,
    TOOK_EFFECT,
    NamedLane,
    available_cpus,
    candidate_lanes,
    cap_environment,
    cpu_groups,
    cpu_vendor,
    default_lanes,
    fingerprint,
    mark_shared,
    measure_lanes,
)

Answer = dict[str, Any]
NO_GPU = not Path("/proc/driver/nvidia/version").exists()
THREE = [
    NamedLane(name="full", cpus=[0]),
    NamedLane(name="sse", cap="sse", cpus=[1]),
    NamedLane(name="avx2", cap="avx2", cpus=[1]),
]


def answer(capability: str, rate: float) -> Answer:
    """What a worker's ``figures`` task answers, with a training rate of our own."""
    return {
        "capability": capability,
        "product_flops": rate * 1e9,
        "copy_bytes_per_s": 1e10,
        "training_rate": rate,
        "memory_bytes": 8 * 2**30,
    }


def scripted(rates: dict[str, float], capability: dict[str, str] | None = None) -> Callable[..., list[Answer]]:
    """A probe that finds these rates by cap, and on every lane the capability that its cap asks for."""

    def probe(lanes: Sequence[NamedLane]) -> list[Answer]:
        return [
            answer({**{c: n[0] for c, n in CAPABILITY.items()}, **(capability or {})}[lane.cap], rates[lane.cap])
            for lane in lanes
        ]

    return probe


# ---- caps ----


@pytest.mark.parametrize("vendor", ["GenuineIntel", "AuthenticAMD", "aarch64"])
def test_full_lane_sets_no_variable(vendor: str) -> None:
    assert cap_environment("full", vendor) == {}


@pytest.mark.parametrize("vendor", ["GenuineIntel", "AuthenticAMD"])
@pytest.mark.parametrize("cap", ["avx2", "sse"])
def test_a_cap_holds_all_three_libraries(cap: str, vendor: str) -> None:
    """MKL does the fp32 products, oneDNN those of bf16, ATen the vector kernels: a cap that forgets one leaks."""
    variables = cap_environment(cap, vendor)
    assert {"MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"} <= set(variables)
    assert all(value for value in variables.values())


def test_mkl_is_slowed_another_way_where_it_ignores_its_variable() -> None:
    assert "MKL_CBWR" not in cap_environment("sse", "GenuineIntel")
    assert cap_environment("sse", "AuthenticAMD")["MKL_CBWR"] == "COMPATIBLE"


def test_vendor_and_fingerprint_describe_this_host() -> None:
    import torch

    assert cpu_vendor()
    here = fingerprint()
    assert here["cores"] == len(available_cpus())
    assert here["torch"] == torch.__version__
    assert here == fingerprint()


# ---- cores ----


@given(st.sets(st.integers(0, 500), min_size=1, max_size=200), st.integers(1, 8))
def test_groups_are_disjoint_and_equal(cpus: set[int], most: int) -> None:
    groups = cpu_groups(sorted(cpus), most)
    used = [core for group in groups for core in group]
    assert len(used) == len(set(used))
    assert set(used) <= cpus
    assert 1 <= len(groups) <= most
    assert len({len(group) for group in groups}) == 1
    assert groups[0]
    assert len(cpus) - len(used) < len(groups)  # only what does not divide is left unused


@pytest.mark.skipif(not NO_GPU, reason="lanes of a host with GPUs are others")
def test_candidates_have_names_of_their_own_and_cores_of_this_host() -> None:
    lanes = candidate_lanes()
    assert len({lane.name for lane in lanes}) == len(lanes)
    assert lanes[0].cap == "full"
    assert {lane.cap for lane in lanes} == {"full", "sse", "avx2"}
    assert all(set(lane.cpus) <= set(available_cpus()) for lane in lanes)


# ---- judgement ----


def test_caps_that_work_are_offered_with_their_ratio() -> None:
    offers = measure_lanes(THREE, scripted({"full": 100.0, "sse": 30.0, "avx2": 75.0}))
    assert [offer.lane.name for offer in offers] == ["full", "sse", "avx2"]
    assert all(offer.offered for offer in offers)
    assert "0.30" in offers[1].reason
    row = offers[1].row(100.0)
    assert row["ratio_to_full"] == pytest.approx(0.3)
    assert {"name", "summary", "source", "parameters", "offered", "reason"} <= set(row)
    assert row["product_gflop_per_s"] == pytest.approx(30.0)


def test_a_cap_that_does_nothing_is_reported_and_not_offered() -> None:
    offers = measure_lanes(THREE, scripted({"full": 100.0, "sse": 30.0, "avx2": 99.0}))
    assert [offer.lane.name for offer in offers if offer.offered] == ["full", "sse"]
    refused = offers[2]
    assert not refused.offered
    assert "does nothing" in refused.reason
    assert "0.99" in refused.reason


@given(st.floats(0.01, 1.0), st.floats(1e-3, 1e6))
def test_the_threshold_decides_whatever_the_speed_of_the_host(ratio: float, full: float) -> None:
    offers = measure_lanes(THREE[:2], scripted({"full": full, "sse": ratio * full}))
    assert offers[1].offered == (ratio * full / full <= TOOK_EFFECT)
    assert any(offer.lane.repeat > 1 for offer in offers) == (not offers[1].offered)


def test_a_cap_that_did_not_take_is_refused_however_slow_the_lane_was() -> None:
    """A busy core alone makes a lane slow: what torch says of itself decides."""
    probe = scripted({"full": 100.0, "sse": 30.0, "avx2": 75.0}, {"avx2": "AVX512"})
    refused = measure_lanes(THREE, probe)[2]
    assert not refused.offered
    assert "AVX512" in refused.reason


def test_fallback_lane_is_offered_and_says_so_where_no_cap_works() -> None:
    offers = measure_lanes(THREE, scripted({"full": 100.0, "sse": 100.0, "avx2": 99.0}))
    fallback = offers[-1]
    assert [offer.offered for offer in offers] == [True, False, False, True]
    assert fallback.reason.startswith("fallback")
    assert fallback.lane.repeat == FALLBACK_REPEAT
    assert fallback.lane.cap == "full"
    assert fallback.training_rate == pytest.approx(100.0 / FALLBACK_REPEAT)


def test_equal_lanes_on_other_cores_are_no_substitute_for_the_fallback() -> None:
    """Four cores whose caps do nothing would give two equal lanes, and nothing to divide unequally."""
    lanes = [*THREE[:2], NamedLane(name="avx2", cap="avx2", cpus=[2]), NamedLane(name="full-2", cpus=[3])]
    offers = measure_lanes(lanes, scripted({"full": 100.0, "sse": 100.0, "avx2": 100.0}))
    offered = [offer.lane for offer in offers if offer.offered]
    assert [lane.name for lane in offered] == ["full", "full-2", "repeat"]
    cores = [core for lane in offered for core in lane.cpus]
    assert len(cores) == len(set(cores))


# ---- the default cluster ----


@pytest.mark.skipif(not NO_GPU, reason="lanes of a host with GPUs are others")
@pytest.mark.parametrize(
    "rates",
    [
        {"full": 100.0, "sse": 30.0, "avx2": 75.0},
        {"full": 100.0, "sse": 100.0, "avx2": 75.0},
        {"full": 100.0, "sse": 100.0, "avx2": 100.0},
    ],
)
def test_default_lanes_are_at_least_two_different_ones_on_disjoint_cores(rates: dict[str, float]) -> None:
    chosen, offers = default_lanes(probe=scripted(rates))
    offered = {offer.lane.name for offer in offers if offer.offered}
    assert len(chosen) >= 2
    assert {lane.name for lane in chosen} <= offered
    assert len({(lane.cap, lane.repeat) for lane in chosen}) >= 2
    if len(available_cpus()) > 1:
        cores = [core for lane in chosen for core in lane.cpus]
        assert len(cores) == len(set(cores))


@pytest.mark.skipif(not NO_GPU or len(available_cpus()) != 2, reason="it is about hosts of two cores")
def test_two_cores_give_full_on_one_and_sse_on_the_other() -> None:
    chosen, _ = default_lanes(probe=scripted({"full": 100.0, "sse": 30.0, "avx2": 75.0}))
    assert [lane.name for lane in chosen] == ["full", "sse"]


# ---- lane files ----


def write(folder: Path, *lanes: dict[str, Any], **top: Any) -> Path:
    file = folder / "lanes.toml"
    file.write_text(tomli_w.dumps({"lanes": list(lanes), **top}))
    return file


def test_a_lane_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    core = available_cpus()[0]
    lanes = [
        NamedLane(name="wide", cpus=[core], threads=1),
        NamedLane(name="narrow", cap="sse", cpus=[core], threads=2, repeat=3),
    ]
    assert read_lanes(write(tmp_path, *(lane.model_dump(mode="json") for lane in lanes))) == mark_shared(lanes)
    assert all(lane.shares_core for lane in mark_shared(lanes))
    assert not any(lane.shares_core for lane in mark_shared(lanes[:1]))


def test_lanes_by_hand_are_all_taken_measured_and_not_replaced(tmp_path: Path) -> None:
    """A lane that is named ``repeat`` by its author keeps its own figures; no fallback comes in unasked."""
    file = write(tmp_path, {"name": "one"}, {"name": "repeat", "cap": "sse"})
    lanes, offers = default_lanes(read_lanes(file), scripted({"full": 100.0, "sse": 99.0}))
    assert [lane.name for lane in lanes] == ["one", "repeat"]
    assert [offer.lane for offer in offers] == lanes
    assert all(offer.offered for offer in offers)
    assert "does nothing" in offers[1].reason
    assert offers[1].training_rate == 99.0


MISSING_CORE = max(available_cpus()) + 1


@pytest.mark.parametrize(
    ("lanes", "path"),
    [
        ([{"name": "a"}, {"name": "a"}], "lanes.0.name"),
        ([{"name": "a", "cpus": [MISSING_CORE]}], "lanes.0.cpus"),
        ([{"name": "a"}, {"name": "b", "speed": 2}], "lanes.1.speed"),
        ([{"name": "a", "cap": "avx1024"}], "lanes.0.cap"),
        ([{"name": "a", "threads": 0}], "lanes.0.threads"),
        ([{"name": "a", "repeat": -1}], "lanes.0.repeat"),
        ([{"name": "a", "torch_device": "tpu"}], "lanes.0.torch_device"),
        ([{"cap": "sse"}], "lanes.0.name"),
        ([], "lanes"),
        pytest.param(
            [{"name": "a", "torch_device": "cuda:0"}],
            "lanes.0.torch_device",
            marks=pytest.mark.skipif(not NO_GPU, reason="there is a GPU"),
        ),
    ],
)
def test_errors_of_a_lane_file_name_the_field_and_a_mend(tmp_path: Path, lanes: list[Answer], path: str) -> None:
    with pytest.raises(InputError) as caught:
        read_lanes(write(tmp_path, *lanes))
    assert caught.value.path == path
    assert caught.value.mend


def test_a_lane_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_lanes(tmp_path / "lanes.toml")
    with pytest.raises(InputError, match="schema_version"):
        read_lanes(write(tmp_path, {"name": "a"}, schema_version=2))


# ---- real lanes ----


@pytest.mark.slow
def test_real_lanes_are_measured_pinned_and_judged(lanes: list[NamedLane]) -> None:
    offers = measure_lanes(lanes)
    assert offers[0].offered
    assert len([offer for offer in offers if offer.offered]) >= 2
    for offer in offers:
        assert offer.product_flops > 0
        assert offer.copy_bytes_per_s > 0
        assert offer.training_rate > 0
        assert offer.memory_bytes > 0
    assert offers[1].offered or any("fallback" in offer.reason for offer in offers)
