"""The figures in the README are those of the scoreboard, and the scoreboard is what `make publish` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from steelyard.policies import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("demo", "scenarios", "published", "bench", "validated")


@pytest.fixture(scope="module")
def sections(module_at: Callable[[str], ModuleType]) -> ModuleType:
    """What makes the README from the scoreboard."""
    return module_at("bench/sections.py")


def test_the_readme_quotes_the_scoreboard(sections: ModuleType) -> None:
    names = ("demo.json", "bench.json", "validation.json")
    absent = [name for name in names if not (sections.SCOREBOARD / name).is_file()]
    if absent:
        pytest.skip(f"results/scoreboard/ has no {' and no '.join(absent)}: `make publish` writes it")
    text = sections.README.read_text(encoding="utf-8")
    for name in SECTIONS:
        assert f"<!-- {name} -->\n" in text
        assert f"<!-- /{name} -->" in text
    assert sections.rendered(text) == text


def test_the_exhaustive_run_found_no_policy_wrong(sections: ModuleType) -> None:
    """A policy that is new since then is asked by the next `make exhaust`; one that is gone must not be counted."""
    found = json.loads((sections.SCOREBOARD / "exhaust.json").read_text())
    assert set(found["policies"]) <= set(REGISTRY)
    assert found["plans_total"] + found["infeasible_total"] >= 100_000
    assert found["invalid_total"] == 0


@pytest.mark.parametrize(("proven", "said"), [(2, "all of them proven"), (1, "1 of them proven")])
def test_operators_are_shown_where_they_were_scored(sections: ModuleType, proven: int, said: str) -> None:
    """Below the rest of attention's scores, which do not change; left out where there are none."""
    score = json.loads((sections.SCOREBOARD / "attention.json").read_text())
    score.pop("operators", None)
    without, figures = sections.attention_lines(score), score["rows"][0]
    labels = ("heft", "attention-operators")
    part = {
        "scenarios": 2,
        "rows": [{**figures, "policy": label} for label in labels],
        "families": [{**score["families"][0], "family": "forks", "policies": dict.fromkeys(labels, figures)}],
    }
    scored = {"small": {**part, "proven": proven}, "large": part, "date": "2026-01-31", "made_by": "steelyard"}
    lines = sections.attention_lines({**score, "operators": scored})
    assert lines[: len(without)] == without
    more = "\n".join(lines[len(without) :])
    assert said in more
    assert "on 2026-01-31 by `steelyard`" in more
    assert more.count("| attention-operators |") == 3, "two tables, and the columns of the families"
    assert more.count("| forks: ") == 2
    assert not any("forks" in line or "heft" in line for line in without)
