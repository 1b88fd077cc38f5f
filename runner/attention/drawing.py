"""Draws: what clusters and graphs at random are made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Document = dict[str, Any]
Span = tuple[float, float]


def span(draws: np.random.Generator, ends: Span) -> float:
    """A number between two ends, uniform in the logarithm."""
    return float(np.exp(draws.uniform(np.log(ends[0]), np.log(ends[1]))))


def pick(draws: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of some options, each as likely."""
    return options[int(draws.integers(len(options)))]
