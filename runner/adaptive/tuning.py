"""tune(): what the parameters that decide whether a change is made come to, on development runs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...policies import make_policy
from .scoring import ADAPTIVE, PARAMETERS, Best, Outcome, made, outcome, still_s
from .worlds import worlds

TRIED: tuple[Mapping[str, float], ...] = (
    {}, {"hysteresis": 0.5}, {"hysteresis": 2.0}, {"least_gain": 0.01}, {"least_gain": 0.02}, {"least_gain": 0.08},
)  # fmt: skip
"""What is compared: the defaults, and others for one parameter at a time."""
Tick = Callable[[int, int], None]


def tune(
    *, names: Sequence[str] = ADAPTIVE, seed: int = 5, each: int = 2, tick: Tick = lambda done, total: None
) -> list[dict[str, Any]]:
    """The parameters of :data:`TRIED` for some policies, over development runs, which no held-out run is among.

    Args:
        names: of adaptive policies.
        seed: of the runs.
        each: runs of every family.
        tick: told how many runs are done.

    Returns:
        By policy and parameters: mean and 10th percentile of the shares of the clairvoyant's throughput, changes, and
        how many runs were slower than without changes plus their price.
    """
    cases = worlds("development", seed, each)
    found: dict[tuple[str, int], list[Outcome]] = {}
    for number, (_, scenario) in enumerate(cases):
        for name in names:
            best, unmoved_s = Best.of(scenario, name), still_s(scenario, made(name))
            for place, values in enumerate(TRIED):
                policy = make_policy(name, {**PARAMETERS.get(name, {}), **values})
                found.setdefault((name, place), []).append(outcome(scenario, policy, best, unmoved_s))
        tick(number + 1, len(cases))
    return [{"policy": name, "tried": _told(TRIED[place]), **_summed(all_)} for (name, place), all_ in found.items()]


def _told(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} = {value:g}" for key, value in values.items()) or "defaults"


def _summed(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    shares = np.array([each.share for each in outcomes])
    return {
        "mean %": round(100 * float(shares.mean()), 2),
        "p10 %": round(100 * float(np.quantile(shares, 0.1)), 2),
        "changes": round(float(np.mean([each.changes for each in outcomes])), 2),
        "not worth": sum(not each.worth for each in outcomes),
    }
