"""The figures in the README are those of the scoreboard, and the scoreboard is what `make publish` wrote."""

from __future__ import annotations

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
