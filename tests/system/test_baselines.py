"""The committed baselines: predictions of the shipped scenarios must not change unnoticed.

Where a change is meant, ``steelyard gate ... --update-baseline`` writes the file anew, and its diff is reviewed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from steelyard.runner.cli import run

BASELINES = Path(__file__).resolve().parents[2] / "results" / "baselines"


@pytest.mark.parametrize("baseline", sorted(BASELINES.glob("*.json")), ids=lambda path: path.stem)
def test_predictions_are_those_of_the_baseline(baseline: Path, tmp_path: Path) -> None:
    assert run(["simulate", baseline.stem, "--runs", str(tmp_path / "runs")]) == 0
    assert run(["gate", str(tmp_path / "runs"), "--baseline", str(baseline)]) == 0


def test_there_is_a_baseline() -> None:
    assert len(list(BASELINES.glob("*.json"))) >= 2
