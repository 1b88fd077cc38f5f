"""The conformance kit for authors of policies: scenarios at random, and what every policy must do with them.

    from steelyard.policies.testing import check_policy

    def test_my_policy():
        check_policy(MyPolicy)

A failure shows the smallest scenario that was found, as a file that ``steelyard simulate`` takes. For tests of one's
own, :func:`scenarios`, :func:`workloads`, :func:`clusters` and :func:`devices` are Hypothesis strategies.
"""

from __future__ import annotations

from ...results.errors import InputError

try:
    import hypothesis  # noqa: F401 - all that follows needs it
except ImportError as error:
    raise InputError("hypothesis", "is not installed", "pip install 'steelyard[testing]'") from error

from .conformance import ConformanceError, check_policy
from .rules import BrokenError, check_scenario
from .strategies import clusters, devices, pasts, policies, scenarios, workloads
from .worlds import quiet, reordered, scenario_toml, slower

__all__ = [
    "BrokenError",
    "ConformanceError",
    "check_policy",
    "check_scenario",
    "clusters",
    "devices",
    "pasts",
    "policies",
    "quiet",
    "reordered",
    "scenario_toml",
    "scenarios",
    "slower",
    "workloads",
]
