"""A small GPT on machines with memory to spare, and shapes on it."""

from __future__ import annotations

from typing import Any

import pytest
from steelyard.sim.spec import Scenario, scenario_from

BATCH = 24


def document(dtype: str = "bf16") -> dict[str, Any]:
    """Two machines of four devices each, of two kinds, and GPT-2 small: 14 layers."""
    figures = {"memory_gib": 80.0, "memory_bandwidth_gb_per_s": 2000.0}
    nodes = [
        {
            "name": name,
            "link": {"name": "nvlink", "latency_us": 5.0, "bandwidth_gb_per_s": 200.0},
            "devices": [{**figures, "name": name, "count": 4, "peak_tflops": {"bf16": peak, "fp32": peak / 4}}],
        }
        for name, peak in (("new", 300.0), ("old", 100.0))
    ]
    return {
        "name": "eight",
        "cluster": {"nodes": nodes, "network": {"name": "lan", "latency_us": 10.0, "bandwidth_gb_per_s": 10.0}},
        "workload": {"model": "gpt2-small", "global_batch": BATCH, "sequence_length": 128, "dtype": dtype},
        "sampling": {"launches": 1, "steps": 2, "search_launches": 1},
    }


@pytest.fixture(scope="session")
def eight() -> Scenario:
    """Eight devices, GPT-2 small."""
    return scenario_from(document())
