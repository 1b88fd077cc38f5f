"""A lane that really hangs, in a pass that does not end, in plans whose lanes say unequally much: it alone is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steelyard.runner.launch import run_group
from steelyard.runner.resolving import job_of
from steelyard.runner.runnable import lanes_of
from steelyard.runner.watch import FaultError
from steelyard.sim.spec import Scenario

pytestmark = pytest.mark.slow

TIMEOUT_S, SHARDING_S = 6.0, 15.0
"""The latter is long enough for a busy host to load what sharding takes, in which a worker says nothing."""


def pipeline(stages: list[tuple[int, int, str]], sizes: list[int]) -> dict[str, Any]:
    return {
        "stages": [{"first": first, "last": last, "replicas": [{"devices": [name]}]} for first, last, name in stages],
        "micro_batches": sizes,
    }


SPLIT = [pipeline([(0, 4, "full")], [10, 10]), pipeline([(0, 4, "sse")], [10])]
TWO_STAGES = [pipeline([(0, 2, "full"), (2, 4, "sse")], [10, 10, 10])]
SHARDED = [pipeline([(0, 4, "full")], [20]), pipeline([(0, 4, "sse")], [10])]
PLANS = {
    "split": {"pipelines": SPLIT},
    "1f1b": {"pipelines": TWO_STAGES, "schedule": "1f1b"},
    "gpipe": {"pipelines": TWO_STAGES, "schedule": "gpipe"},
    "zero 2": {"pipelines": SHARDED, "zero": 2},
    "zero 3": {"pipelines": SHARDED, "zero": 3},
}


@pytest.mark.parametrize(
    ("plan", "lane"),
    [("split", "sse"), ("1f1b", "full"), ("1f1b", "sse"), ("gpipe", "sse"), ("zero 2", "full"), ("zero 3", "sse")],
)
def test_the_lane_that_hangs_is_named(
    tiny_scenario: Scenario, tmp_path: Path, hanging: Callable[..., dict[str, Any]], plan: str, lane: str
) -> None:
    scenario, lanes = tiny_scenario, lanes_of(tiny_scenario)
    names = [each.name for each in lanes]
    job, data = job_of(scenario.workload, scenario.training, tmp_path, seed=0)
    task = {**hanging(scenario, PLANS[plan], names, lane), "folder": str(tmp_path)}
    timeout_s = SHARDING_S if "zero" in PLANS[plan] else TIMEOUT_S
    with pytest.raises(FaultError) as failed:
        run_group(lanes, [task], job, timeout_s=timeout_s, data=data)
    assert (failed.value.fault.kind, failed.value.fault.lane) == ("hung", lane), failed.value
