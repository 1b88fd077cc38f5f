"""The kit in the hands of an author: a package of one's own, in its own folder, with the few lines that test it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from steelyard.results.errors import InputError
from steelyard.sim.spec import parse_toml, scenario_from

POLICY = '''from dataclasses import dataclass
from typing import Annotated, ClassVar

from steelyard.policies import Range, round_shares


@dataclass(frozen=True, kw_only=True)
class ByMemory:
    """Split the batch in proportion to memory bandwidth ** power."""

    name: ClassVar[str] = "by-memory"
    power: Annotated[float, Range(0, 2)] = 1.0

    def allocate(self, view):
        return round_shares(view, [device.memory_bandwidth**self.power for device in view.devices])
'''
TEST = """from steelyard.policies.testing import check_policy

from by_memory import ByMemory


def test_by_memory():
    check_policy(ByMemory, max_examples=30)
"""


def tried(folder: Path, policy: str) -> subprocess.CompletedProcess[str]:
    """What pytest says of a package with a policy and its test."""
    package = folder / "by_memory"
    package.mkdir()
    (package / "__init__.py").write_text(policy)
    (folder / "test_by_memory.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_by_memory.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_good_policy_passes(tmp_path: Path) -> None:
    done = tried(tmp_path, POLICY)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "1 passed" in done.stdout
    command = [Path(sys.executable).with_name("steelyard"), "simulate", "mixed-gpus", "-p", "by_memory:ByMemory"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_bad_one_fails_with_a_scenario_that_loads(tmp_path: Path) -> None:
    """Its shares ignore the memory: the plan is refused."""
    plain = "view.plan([view.global_batch if device is view.devices[0] else 0 for device in view.devices])"
    start = POLICY.index("round_shares(view, [")
    done = tried(tmp_path, POLICY[:start] + plain + "\n")
    assert done.returncode == 1
    assert "ConformanceError" in done.stdout
    lines = [line.removeprefix("E").strip() for line in done.stdout.splitlines() if line.startswith("E  ")]
    begin = lines.index("A scenario that shows it (save it as scenario.toml):") + 1
    scenario = scenario_from(parse_toml("\n".join(lines[begin:]), "counter-example"))
    assert scenario.name == "generated"
    assert len(scenario.workload.layers) == 1


@pytest.mark.parametrize("key", ["link", "network"])
def test_a_link_of_no_bandwidth_is_a_clear_error(key: str) -> None:
    device = {"name": "one", "peak_tflops": {"fp32": 1.0}, "memory_gib": 1.0, "memory_bandwidth_gb_per_s": 1.0}
    link = {"name": "link", "latency_us": 1.0, "bandwidth_gb_per_s": 1.0}
    node = {"name": "host", "devices": [device], "link": link, key: {**link, "bandwidth_gb_per_s": 0.0}}
    document = {"name": "x", "cluster": {"nodes": [node]}, "workload": {"model": "gpt2", "global_batch": 1}}
    with pytest.raises(InputError) as caught:
        scenario_from(document)
    assert caught.value.path == f"cluster.nodes.0.{key}.bandwidth_gb_per_s"
    assert str(caught.value).endswith("is 0.0 (must be greater than 0.0)")
