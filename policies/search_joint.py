"""Optuna's samplers over a joint space that is known beforehand. Imported where one is used: it needs Optuna."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIIISampler, NSGAIISampler, QMCSampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.samplers._nsgaiii._elite_population_selection_strategy import NSGAIIIElitePopulationSelectionStrategy
from optuna.study import Study
from optuna.trial import FrozenTrial

__all__ = ["JOINT_SAMPLERS", "ExperimentalWarning", "numeric"]

Distributions = Mapping[str, BaseDistribution]

POPULATION = 24
"""Of NSGA-II and NSGA-III. Optuna's 50 would leave a search of 200 trials with four generations."""


def numeric(distributions: Distributions) -> dict[str, BaseDistribution]:
    """Those that are ranges of numbers."""
    return {name: each for name, each in distributions.items() if not isinstance(each, CategoricalDistribution)}


class JointNSGAII(NSGAIISampler):
    """NSGA-II: crossover of good trials; dormant parameters are passed on."""

    def __init__(self, distributions: Distributions, seed: int) -> None:
        super().__init__(population_size=POPULATION, seed=seed)
        self._joint = dict(distributions)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The joint space; Optuna would look for it in the history."""
        return dict(self._joint)


class JointNSGAIII(NSGAIIISampler):
    """NSGA-III: the same, with points of reference that spread the parents over three objectives and more."""

    def __init__(self, distributions: Distributions, seed: int) -> None:
        # Parents are drawn once and noted: with draws of their own, so that those of a trial do not hang on who drew.
        self._parents_rng = LazyRandomState(seed)
        chosen = NSGAIIIElitePopulationSelectionStrategy(population_size=POPULATION, rng=self._parents_rng)
        super().__init__(population_size=POPULATION, seed=seed, elite_population_selection_strategy=chosen)
        self._joint, self._seed = dict(distributions), seed

    def begin(self, number: int) -> None:
        """The next draws are of this trial."""
        self._parents_rng.rng.seed((self._seed + 1_000_003 * number) % 2**32)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The joint space."""
        return dict(self._joint)


class JointQMC(QMCSampler):
    """A scrambled Sobol sequence; trial n is its point n."""

    def __init__(self, distributions: Distributions, seed: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._joint = dict(distributions)
        self._number = 0

    def begin(self, number: int) -> None:
        """The next draws are of this trial."""
        self._number = number

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The joint space."""
        return dict(self._joint)

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        """The trial's number: Optuna counts in the storage, where a killed trial would leave a gap."""
        return self._number


class JointCmaEs(CmaEsSampler):
    """CMA-ES over the numbers of the joint space."""

    def __init__(self, distributions: Distributions, seed: int) -> None:
        super().__init__(seed=seed, warn_independent_sampling=False)
        self._joint = numeric(distributions)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The numbers of the joint space."""
        return dict(self._joint)


class JointGP(GPSampler):
    """A Gaussian process; its kernels are fitted anew for every trial, and not from where the last fit ended."""

    def __init__(self, distributions: Distributions, seed: int) -> None:
        super().__init__(seed=seed, warn_independent_sampling=False)
        self._joint = dict(distributions)

    def begin(self, number: int) -> None:
        """Forget the fits of earlier trials, which a resumed search does not have."""
        self._gprs_cache_list = None
        self._constraints_gprs_cache_list = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The joint space."""
        return dict(self._joint)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Optuna's; but what a killed search has drawn for the trial and noted is taken, and not its own neighbour."""
        noted = self._noted(trial, search_space)
        return noted if noted is not None else super().sample_relative(study, trial, search_space)

    def _noted(self, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any] | None:
        parts = {key: text for key, text in trial.system_attrs.items() if "relative_params:" in key}
        ordered = [parts[key] for key in sorted(parts, key=lambda key: int(key.rpartition(":")[2]))]
        try:
            noted = json.loads("".join(ordered))
        except json.JSONDecodeError:  # none, or torn
            return None
        return dict(noted) if noted.keys() == search_space.keys() else None


JOINT_SAMPLERS: dict[str, Callable[[Distributions, int], BaseSampler]] = {
    "nsgaii": JointNSGAII,
    "nsgaiii": JointNSGAIII,
    "qmc": JointQMC,
    "cmaes": JointCmaEs,
    "gp": JointGP,
}
