"""The kit in the hands of an author: a package of one's own, in its own folder, with the few lines that test it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies.toml import to_toml
from steelyard.results.errors import InputError
from steelyard.sim.spec import apply_setting, parse_toml, scenario_from

DOCS = Path(__file__).resolve().parents[2] / "docs" / "policies.md"


def documented() -> tuple[str, str]:
    """The example of docs/policies.md: the policy as a module, and the test of it that stands below."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [each for each in blocks if "check_policy(" in each]
    kit = "from steelyard.policies.testing import check_policy\n"
    policy, _, test = block.replace(kit, "").partition("def test_")
    called = re.search(r"class (\w+):", policy)
    assert called is not None
    assert kit in block
    fewer = test.replace(f"check_policy({called[1]})", f"check_policy({called[1]}, max_examples=30)")
    assert fewer != test
    return policy, f"{kit}from by_bandwidth import {called[1]}\n\n\ndef test_{fewer}"


POLICY, TEST = documented()


def test_the_example_is_as_short_as_promised() -> None:
    """Twelve lines, blank ones and imports aside."""
    lines = [line for line in POLICY.splitlines() if line and not line.startswith(("from ", "import "))]
    tests = [line for line in TEST.splitlines() if line and not line.startswith("from ")]
    assert len(lines) + len(tests) <= 12


def tried(folder: Path, policy: str) -> subprocess.CompletedProcess[str]:
    """What pytest says of a package with a policy and its test."""
    package = folder / "by_bandwidth"
    package.mkdir()
    (package / "__init__.py").write_text(policy)
    (folder / "test_by_bandwidth.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_by_bandwidth.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_good_policy_passes(tmp_path: Path) -> None:
    done = tried(tmp_path, POLICY)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "1 passed" in done.stdout
    command = [Path(sys.executable).with_name("steelyard"), "simulate", "mixed-gpus", "-p", "by_bandwidth:ByBandwidth"]
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


def linked() -> dict[str, Any]:
    """Two machines on two switches, every link written out."""
    device = {"name": "one", "peak_tflops": {"fp32": 1.0}, "memory_gib": 1.0, "memory_bandwidth_gb_per_s": 1.0}
    link = {"name": "link", "latency_us": 1.0, "bandwidth_gb_per_s": 1.0, "reverse_bandwidth_gb_per_s": 1.0}
    nodes = [
        {"name": name, "devices": [{**device, "name": name}], "link": {**link}, "network": {**link}, "switch": "s0"}
        for name in ("a", "b")
    ]
    switches = [{"name": "s0", "uplink": {**link}, "parent": "s1"}, {"name": "s1", "uplink": {**link}}]
    cluster = {"nodes": nodes, "network": {**link}, "switches": switches}
    return {"name": "x", "cluster": cluster, "workload": {"model": "gpt2", "global_batch": 2}}


LINKS = ("nodes.0.link", "nodes.1.network", "network", "switches.0.uplink", "switches.1.uplink")


@pytest.mark.parametrize("key", ["bandwidth_gb_per_s", "reverse_bandwidth_gb_per_s"])
@pytest.mark.parametrize("link", LINKS)
def test_a_link_of_no_bandwidth_is_a_clear_error(link: str, key: str) -> None:
    document = linked()
    scenario_from(document)
    path = f"cluster.{link}.{key}"
    apply_setting(document, f"{path}=0")
    with pytest.raises(InputError) as caught:
        scenario_from(document)
    assert caught.value.path == path
    assert str(caught.value).endswith("is 0 (must be greater than 0.0)")


@pytest.mark.parametrize("where", ["switches.0.uplink", "nodes.0.network"])
def test_set_to_no_bandwidth_on_the_command_line_is_one_clear_line(tmp_path: Path, where: str) -> None:
    path = f"cluster.{where}.bandwidth_gb_per_s"
    (tmp_path / "x.toml").write_text(to_toml(linked()))
    command = [Path(sys.executable).with_name("steelyard"), "simulate", "x.toml", "--set", f"{path}=0"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert path in line
    assert "must be greater than 0" in line
