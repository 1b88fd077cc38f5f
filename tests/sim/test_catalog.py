"""The shipped devices, links, models and scenarios: each loads, says where its figures are from, and makes sense."""

from __future__ import annotations

from itertools import pairwise

import pytest
from steelyard.policies import DEFAULTS, REGISTRY, make_policy
from steelyard.results.errors import InputError
from steelyard.sim.engine import simulate
from steelyard.sim.plan import Plan
from steelyard.sim.sources import figures
from steelyard.sim.spec import (
    Scenario,
    load_device,
    load_link,
    load_model,
    load_scenario,
    parse_toml,
    read_document,
    shipped_names,
    shipped_text,
)
from steelyard.sim.view import View
from steelyard.sim.workload import DTYPE_BYTES, Workload, at

DEVICES, LINKS, MODELS = (shipped_names(f"catalog/{each}") for each in ("devices", "links", "models"))
DATASHEET = ("mixed-gpus", "old-and-new")


def test_the_catalog_is_broad() -> None:
    assert len(DEVICES) >= 28
    assert len(LINKS) >= 21


@pytest.mark.parametrize(
    ("folder", "name"), [*(("devices", each) for each in DEVICES), *(("links", each) for each in LINKS)]
)
def test_every_figure_names_its_source(folder: str, name: str) -> None:
    document = parse_toml(shipped_text(f"catalog/{folder}", name), name)
    assert document["name"] == name
    tables = {key: value for key, value in document.items() if key not in {"name", "summary", "ranges", "source"}}
    given = {key for key, value in tables.items() if not isinstance(value, dict)}
    given |= {f"{key}.{inner}" for key, value in tables.items() if isinstance(value, dict) for inner in value}
    assert set(document["source"]) == given
    assert all(text.strip() for text in document["source"].values())


@pytest.mark.parametrize("name", DEVICES)
def test_devices_are_sane(name: str) -> None:
    """Within a factor of a hundred of what such hardware has: a slip of units is a factor of a thousand."""
    device = load_device(name)
    assert device.summary
    assert set(device.peak_tflops) <= set(DTYPE_BYTES)
    assert 0.1 < device.peak_tflops.get("fp32", 1.0) < 200
    assert all(1e10 < device.peak(dtype) < 1e16 for dtype in device.peak_tflops)
    assert 1e10 < device.memory_bandwidth < 1e13
    assert 2**32 < device.memory_bytes < 2**40
    assert (device.idle_w is None) == (device.max_w is None)
    assert device.max_w is None or 50 < device.max_w < 2000
    assert device.idle_w is None or device.max_w is None or device.idle_w < device.max_w / 2


@pytest.mark.parametrize("name", DEVICES)
def test_work_leaves_the_memory_slower_than_the_units(name: str) -> None:
    """Every device does 4 to 1000 operations in the time of a byte: a slip of units is outside."""
    device = load_device(name)
    fastest = max(device.peak_tflops, key=lambda dtype: device.peak_tflops[dtype])
    assert 4 < device.peak(fastest) / device.memory_bandwidth < 1000


@pytest.mark.parametrize("name", DEVICES)
def test_a_range_holds_its_figure(name: str) -> None:
    device = load_device(name)
    assert set(device.ranges) <= set(figures(device))
    for figure, (low, high) in device.ranges.items():
        key, _, inner = figure.partition(".")
        value = getattr(device, key)
        assert low <= (value[inner] if inner else value) <= high
        assert low < high


@pytest.mark.parametrize("name", DEVICES)
def test_a_narrower_dtype_is_never_slower(name: str) -> None:
    peaks = load_device(name).peak_tflops
    for sixteen in ("bf16", "fp16"):
        order = [peaks[dtype] for dtype in ("fp64", "fp32", "tf32", sixteen, "fp8") if dtype in peaks]
        assert order == sorted(order)


@pytest.mark.parametrize("name", DEVICES)
def test_a_rate_is_at_most_twice_the_next_wider_ones(name: str) -> None:
    """Of the matrix units' dtypes: halving the bits doubles the rate at best, so that a sparse peak stands out."""
    peaks = load_device(name).peak_tflops
    for wide, narrow in (("tf32", "bf16"), ("tf32", "fp16"), ("bf16", "fp8"), ("fp16", "fp8")):
        if wide in peaks and narrow in peaks:
            assert peaks[narrow] <= 2.05 * peaks[wide]  # published figures are rounded
    if {"bf16", "fp16"} <= set(peaks):
        assert peaks["bf16"] == peaks["fp16"]


@pytest.mark.parametrize("name", LINKS)
def test_links_are_sane(name: str) -> None:
    link = load_link(name)
    assert 1e-7 < link.latency_s < 1e-3
    assert 1e8 < link.bandwidth < 1e12


@pytest.mark.parametrize(
    "order",
    [
        "pcie-3 pcie-4 pcie-5",
        "nvlink-2 nvlink-3 nvlink-4 nvlink-5",
        "ethernet-10g ethernet-25g ethernet-100g ethernet-200g ethernet-400g",
        "infiniband-100 infiniband-200 infiniband-400",
        "infinity-fabric-mi250x infinity-fabric-mi300x",
        "tpu-ici-v5e tpu-ici-v4 tpu-ici-v5p",
    ],
)
def test_faster_links_are_faster(order: str) -> None:
    links = [load_link(name) for name in order.split()]
    for slow, fast in pairwise(links):
        assert slow.bandwidth < fast.bandwidth
        assert slow.latency_s >= fast.latency_s


@pytest.mark.parametrize(
    "order",
    [
        "nvidia-k80 nvidia-p100-sxm-16gb nvidia-v100-sxm-16gb nvidia-a100-sxm-40gb nvidia-h100-sxm nvidia-b200",
        "nvidia-t4 nvidia-l4 nvidia-a10 nvidia-l40s",
        "nvidia-rtx-2080-ti nvidia-rtx-3090 nvidia-rtx-4090",
        "amd-mi250x amd-mi300x",
        "google-tpu-v5e google-tpu-v4 google-tpu-v5p",
    ],
)
def test_faster_devices_are_faster(order: str) -> None:
    sixteen = [load_device(name) for name in order.split()]
    peaks = [max(device.peak("fp16"), device.peak("bf16")) for device in sixteen]
    assert peaks == sorted(set(peaks))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("nvidia-v100-sxm-16gb", "nvidia-v100-sxm-32gb"),
        ("nvidia-a100-sxm-40gb", "nvidia-a100-sxm-80gb"),
        ("nvidia-a100-sxm-80gb", "nvidia-a100-pcie-80gb"),
        ("nvidia-h100-sxm", "nvidia-h200-sxm"),
        ("nvidia-h100-sxm", "nvidia-gh200"),
    ],
)
def test_variants_of_one_chip_compute_alike(one: str, other: str) -> None:
    assert load_device(one).peak_tflops == load_device(other).peak_tflops


@pytest.mark.parametrize("name", MODELS)
def test_models_are_sane(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert model.summary
    assert model.source
    assert len({layer.name for layer in model.layers}) == len(model.layers)
    workload = Workload(model=model, global_batch=1, sequence_length=64)
    # the sine tables of positions (Whisper, PatchTST) are parameters that no optimizer touches
    assert 0.98 * workload.parameters < workload.trainable_parameters <= workload.parameters
    for layer in model.layers:
        assert at(layer.output_elements, 64) > 0
        # every product has a backward of twice its FLOPs, or less where no input gradient is needed
        assert layer.backward_flops(64) <= 2 * layer.forward_flops(64)


@pytest.mark.parametrize(
    ("name", "parameters", "tolerance"),
    [("bert-base", 109.5e6, 0.001), ("gpt2", 124.4e6, 0.001), ("llama-3-8b", 8.03e9, 0.001)],
)
def test_parameters_are_the_published_ones(name: str, parameters: float, tolerance: float) -> None:
    counted = sum(layer.parameters for layer in load_model(name).layers)
    assert counted == pytest.approx(parameters, rel=tolerance)


def test_training_flops_are_six_per_parameter_and_token_and_attention() -> None:
    """6 N + 12 L h s per token (Kaplan et al. 2020; PaLM, appendix B), N without the embedding table."""
    workload = Workload(model=load_model("llama-3-8b"), global_batch=1, sequence_length=4096)
    matrices = workload.parameters - 128_256 * 4096
    expected = 4096 * (6 * matrices + 12 * 32 * 4096 * 4096)
    assert workload.flops_per_sample == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", shipped_names("scenarios"))
def test_scenarios_say_what_they_are(name: str) -> None:
    document, _ = read_document(name)
    assert document["name"] == name
    assert document["summary"]
    assert document["source"]


def test_the_demo_asks_for_this_hosts_lanes() -> None:
    document, _ = read_document("demo")
    assert document["cluster"] == {"lanes": "auto"}
    assert document["workload"]["model"] == "bert-tiny-text"
    with pytest.raises(InputError, match="calibrate"):
        load_scenario("demo")


@pytest.fixture(scope="module")
def studies() -> dict[str, Scenario]:
    return {name: load_scenario(name) for name in DATASHEET}


@pytest.mark.parametrize("policy", sorted(REGISTRY))
@pytest.mark.parametrize("name", DATASHEET)
def test_every_policy_runs_on_every_datasheet_scenario(studies: dict[str, Scenario], name: str, policy: str) -> None:
    run = simulate(studies[name], make_policy(policy))
    assert run.summary.fidelity == "datasheet"
    assert run.summary.step_time_s.p50 >= run.summary.lower_bound_step_time_s * (1 - 1e-9)
    assert run.summary.mfu is not None
    assert 0 < run.summary.mfu < 1
    Plan.parse(run.plan).check(studies[name])


@pytest.mark.parametrize("name", DATASHEET)
def test_policies_differ_where_the_devices_do(studies: dict[str, Scenario], name: str) -> None:
    view = View.of(studies[name])
    splits = {policy: make_policy(policy).allocate(view).split() for policy in DEFAULTS}
    fast, slow = (device.name for device in sorted(view.devices, key=lambda device: -device.peak_flops))
    equal = studies[name].workload.global_batch // 2
    assert splits["uniform"] == {fast: equal, slow: equal}
    assert splits["flops"][fast] > splits["flops"][slow]
    assert splits["flops"] != splits["throughput"]
    assert list(splits["linear-cost"]) == [fast]


@pytest.mark.parametrize("name", DATASHEET)
def test_the_exact_split_is_never_beaten(studies: dict[str, Scenario], name: str) -> None:
    times = {policy: simulate(studies[name], make_policy(policy)).summary.step_time_s.p50 for policy in DEFAULTS}
    assert times["makespan"] <= min(times.values()) * (1 + 1e-9)
    assert times["makespan"] < times["uniform"]
