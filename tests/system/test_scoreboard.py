"""The figures in the README are those of the scoreboard, and the scoreboard is what `make publish` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("demo", "scenarios", "published", "bench", "validated")


@pytest.fixture(scope="module")
def publish(module_at: Callable[[str], ModuleType]) -> ModuleType:
    """The program that writes the scoreboard."""
    return module_at("bench/publish.py")


def test_the_readme_quotes_the_scoreboard(publish: ModuleType) -> None:
    names = ("demo.json", "bench.json", "validation.json")
    absent = [name for name in names if not (publish.SCOREBOARD / name).is_file()]
    if absent:
        pytest.skip(f"results/scoreboard/ has no {' and no '.join(absent)}: `make publish` writes it")
    text = publish.README.read_text(encoding="utf-8")
    for name in SECTIONS:
        assert f"<!-- {name} -->\n" in text
        assert f"<!-- /{name} -->" in text
    assert publish.rendered(text) == text


@pytest.mark.parametrize(("proven", "said"), [(2, "all of them proven"), (1, "1 of them proven")])
def test_operators_are_shown_where_they_were_scored(publish: ModuleType, proven: int, said: str) -> None:
    """Below the rest of attention's scores, which do not change; left out where there are none."""
    score = json.loads((publish.SCOREBOARD / "attention.json").read_text())
    score.pop("operators", None)
    without, figures = publish.attention_lines(score), score["rows"][0]
    labels = ("heft", "attention-operators")
    part = {
        "scenarios": 2,
        "rows": [{**figures, "policy": label} for label in labels],
        "families": [{**score["families"][0], "family": "forks", "policies": dict.fromkeys(labels, figures)}],
    }
    scored = {"small": {**part, "proven": proven}, "large": part, "date": "2026-01-31", "made_by": "steelyard"}
    lines = publish.attention_lines({**score, "operators": scored})
    assert lines[: len(without)] == without
    more = "\n".join(lines[len(without) :])
    assert said in more
    assert "on 2026-01-31 by `steelyard`" in more
    assert more.count("| attention-operators |") == 3, "two tables, and the columns of the families"
    assert more.count("| forks: ") == 2
    assert not any("forks" in line or "heft" in line for line in without)
