"""Optuna's samplers by name, made to repeat: each draw is reseeded, and depends on nothing but what was told before.

That holds exactly for tpe, random, nsgaii, nsgaiii, qmc and cmaes on every machine with the same library versions; gp
fits its kernels in torch, whose sums differ from one kind of processor to another: it repeats on one machine.

tpe and random draw the policy, then its parameters. The others want the same parameters in every trial and get a joint
space (:class:`.Space`); cmaes moves the numbers and draws choices, the policy among them, at random. grid is none of
Optuna's (its two would try each setting of a policy beside each of another's): the space itself lists its points.
"""

from __future__ import annotations

import hashlib
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError

if TYPE_CHECKING:
    from .search_space import Space

GRID = "grid"
"""Every setting of every policy, each once, and no draws."""
SAMPLERS = ("tpe", "random", GRID, "nsgaii", "nsgaiii", "qmc", "cmaes", "gp")
JOINT = SAMPLERS[3:]
SINGLE = ("cmaes",)
"""Samplers that know one objective only, and no constraints."""
SEVERAL = ("nsgaiii",)
"""Samplers that spread trials over several objectives."""
NEEDS = {"cmaes": "cmaes", "gp": "torch"}
"""Sampler -> package that Optuna does not bring."""


def check_sampler(name: str, objectives: int, constraints: int) -> None:
    """Refuse what is unknown, not installed, or cannot do what is asked.

    Raises:
        InputError: see the problem.
    """
    if name not in SAMPLERS:
        raise InputError("sampler", f"{name!r} is unknown", f"one of {', '.join(SAMPLERS)}")
    if name in SINGLE and (objectives > 1 or constraints):
        raise InputError("sampler", f"{name} knows one objective and no limits", "use tpe or nsgaii")
    if name in SEVERAL and objectives < 2:
        raise InputError("sampler", f"{name} spreads trials over several objectives", "use nsgaii, or --objective a,b")
    package = NEEDS.get(name)
    if package is not None and find_spec(package) is None:
        raise InputError("sampler", f"{name} needs {package}, which is not installed", f"pip install {package}")


def make_sampler(name: str, space: Space | None = None, seed: int = 0) -> Any:
    """The Optuna sampler of a name, as the search uses it.

    TPE comes without constant liar, whose view depends on timing.

    Raises:
        InputError: the space has nothing that the sampler can move.
    """
    from optuna import samplers

    if name == "tpe":
        return samplers.TPESampler(seed=0, constant_liar=False)
    if name in ("random", GRID):
        return samplers.RandomSampler(seed=0)
    from . import search_joint

    assert space is not None, "these samplers draw from a joint space"
    if name == "cmaes" and not search_joint.numeric(space.distributions):
        raise InputError("sampler", "cmaes finds no parameter with a range of numbers", "use tpe")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=search_joint.ExperimentalWarning)
        sampler: Any = search_joint.JOINT_SAMPLERS[name](space.distributions, seed)
    return sampler


def reseed(sampler: Any, seed: int, number: int, purpose: str) -> None:
    """Give a sampler the seed of one draw of one trial.

    Optuna has no public way to do it, and a new sampler for each draw would read the whole history again.
    """
    text = f"{seed}/{number}/{purpose}"
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    for inner in (sampler, *(getattr(sampler, name, None) for name in ("_random_sampler", "_independent_sampler"))):
        for source in (getattr(inner, "_rng", None), getattr(inner, "_cma_rng", None)):
            if source is not None:
                source.rng.seed(value)
    begin = getattr(sampler, "begin", None)
    if begin is not None:
        begin(number)
