"""Where benchmarks leave their ratios: a JSON file that ``make publish`` names, and always the screen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def scoreboard() -> Callable[..., None]:
    """Keeps one ratio: ``scoreboard(name, value, aim=..., what=...)``."""

    def keep(name: str, value: float, *, aim: str, what: str) -> None:
        print(f"\n{name}: {value:.2f} (aim {aim}): {what}")
        if place := os.environ.get("STEELYARD_SCOREBOARD"):
            file = Path(place)
            kept = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps({**kept, name: {"value": value, "aim": aim, "what": what}}))

    return keep
