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


def adapted(run: Run) -> bool:
    """Whether a run's policy changed its plan under way."""
    return any(each["changed"] and each["step"] > 0 for each in run.decisions)
