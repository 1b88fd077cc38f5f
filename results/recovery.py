"""Recovery: what a run whose lane was slowed down regains of the best throughput that it could then have."""

from __future__ import annotations

from .metrics import Launches, median
from .record import Recovery, Run

WITHIN_STEPS = 20
"""An adaptive policy has so many steps from a change of speed until it is judged."""


def recovery(times: Launches, last_change: int, optimum_s: float) -> Recovery | None:
    """What a run regains once the devices' speeds have changed for the last time.

    Args:
        times: seconds of each step from the run's second (step 1), per launch: the first one's beginning is not known.
        last_change: the step in which speeds changed for the last time.
        optimum_s: seconds of a step of the best plan at the speeds from then on.

    Returns:
        None where no step is left after those that a policy has to recover.
    """
    judged = [steps[last_change + WITHIN_STEPS - 1 :] for _, steps in sorted(times.items())]
    if not any(judged):
        return None
    step_s = median(judged)
    return Recovery(last_change=last_change, optimum_s=optimum_s, step_s=step_s, share_percent=100 * optimum_s / step_s)


def launches_kept(run: Run) -> int | None:
    """In how many launches a run's policy was asked under way and kept its plan; None: it was never asked.

    A policy that is not asked can do nothing about a slowdown; one that is, and keeps its plan, is judged by that.
    """
    asked = [each for each in run.decisions if each["step"] > 0]
    changed = {each["launch"] for each in asked if each["changed"]}
    return len({each["launch"] for each in asked} - changed) if asked else None
