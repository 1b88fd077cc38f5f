"""The figures in the README are those of the scoreboard, and the scoreboard is what `make publish` wrote."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("demo", "scenarios", "published", "bench", "validated")


@pytest.fixture(scope="module")
def publish() -> ModuleType:
    """The program, by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location("publish", ROOT / "tests" / "bench" / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
