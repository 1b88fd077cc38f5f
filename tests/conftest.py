"""Hypothesis' profiles, and one small scenario that every folder's tests may use."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.workload import Workload

# Tables are as wide as what they hold, whatever the terminal is that tests run in; who tests widths sets one.
os.environ.pop("COLUMNS", None)

# No deadline: a shared host stalls for longer than any example takes, and a slow example is no defect.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile("nightly", parent=settings.get_profile("default"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

Document = dict[str, Any]
SIZES = (1, 2, 4, 8, 16, 32)
RESIDUALS = [-0.05, -0.03, -0.02, -0.01, -0.01, 0.0, 0.0, 0.01, 0.02, 0.03, 0.04, 0.08]


def _layer(name: str) -> Document:
    operator = {"kind": "matmul", "flops": [0.0, 2e6], "elements": [0.0, 3e3], "weight_elements": 250_000}
    return {
        "name": name,
        "parameters": 250_000,
        "trainable_parameters": 250_000,
        "forward": [operator],
        "backward": [{**operator, "flops": [0.0, 4e6], "kernels": 2}],
        "activation_elements": [0.0, 2e3, 4.0],
        "output_elements": [0.0, 128.0],
    }


def _workload() -> Document:
    model = {"name": "toy", "layers": [_layer(f"block{number}") for number in range(4)]}
    return {"model": model, "global_batch": 32, "sequence_length": 32}


def _profile(scale: float, residuals: list[float], launch_residuals: list[float]) -> Document:
    """A device whose forward pass takes ``scale`` x (1 ms + 0.5 ms a sample), its backward pass twice that."""
    points = [
        {"micro_batch": size, "forward_s": scale * (1e-3 + 5e-4 * size), "backward_s": scale * (2e-3 + 1e-3 * size)}
        for size in SIZES
    ]
    return {
        "workload": Workload.model_validate(_workload()).key,
        "points": points,
        "optimizer_s": scale * 8e-4,
        "step_residuals": residuals,
        "launch_residuals": launch_residuals,
    }


def _device(name: str, scale: float, noisy: bool) -> Document:
    residuals = list(RESIDUALS) if noisy else [0.0]
    launches = [-0.02, -0.01, 0.0, 0.01, 0.02 * scale] if noisy else [0.0]
    return {
        "name": name,
        "peak_tflops": {"fp32": 1.0 / scale},
        "memory_gib": 4.0 / scale,
        "memory_bandwidth_gb_per_s": 10.0,
        "idle_w": 10.0,
        "max_w": 60.0 - 10.0 * scale,
        "price_usd_per_hour": 0.12 - 0.02 * scale,
        "profile": _profile(scale, residuals, launches),
    }


def _document(noisy: bool = True) -> Document:
    table = {
        "backend": "gloo",
        "devices": ["fast", "slow"],
        "points": [{"bytes": 1000 * 10**power, "seconds": 1e-4 * 3**power} for power in range(5)],
        "step_residuals": [-0.1, 0.0, 0.1] if noisy else [0.0],
        "launch_residuals": [-0.02, 0.0, 0.02] if noisy else [0.0],
    }
    node = {
        "name": "host",
        "link": {"name": "loopback", "latency_us": 30.0, "bandwidth_gb_per_s": 2.0},
        "devices": [_device("fast", 1.0, noisy), _device("slow", 3.0, noisy)],
    }
    return {
        "name": "two-lanes",
        "cluster": {"nodes": [node], "collectives": [table]},
        "workload": _workload(),
        "sampling": {"launches": 8, "steps": 10},
        "seed": 7,
    }


@pytest.fixture(scope="session")
def module_at() -> Callable[[str], ModuleType]:
    """Loads a file of the tests by its path below their folder: they are no package (import mode importlib)."""

    def load(path: str) -> ModuleType:
        file = Path(__file__).parent / path
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def make_document() -> Callable[..., Document]:
    """Builds the scenario of two profiled lanes as a fresh document; ``noisy=False`` leaves the residuals out."""
    return _document


@pytest.fixture(scope="session")
def scenario() -> Scenario:
    """Two profiled devices, ``fast`` and ``slow`` (three times the time), a measured all-reduce, and noise."""
    return scenario_from(_document())


@pytest.fixture(scope="session")
def quiet_scenario() -> Scenario:
    """The same two devices without noise: every step is the same."""
    return scenario_from(_document(noisy=False))
