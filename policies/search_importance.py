"""Importance of parameters: how much each decides whether a trial is among the best; Optuna's evaluators by name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..results.errors import InputError
from .search_result import SearchResult
from .search_study import quiet_optuna

if TYPE_CHECKING:
    from optuna.study import Study

EVALUATORS = ("ped-anova", "fanova", "mdi")
LEAST = 20
"""Trials with a value: the best tenth of fewer is one or two."""


def check_evaluator(name: str) -> None:
    """Refuse what is unknown or not installed.

    Raises:
        InputError: see the problem.
    """
    if name not in EVALUATORS:
        raise InputError("importance", f"{name!r} is unknown", f"one of {', '.join(EVALUATORS)}")
    if name != EVALUATORS[0] and find_spec("sklearn") is None:
        raise InputError("importance", f"{name} needs scikit-learn", "pip install scikit-learn")


def importances(result: SearchResult, evaluator: str = "ped-anova") -> dict[str, float]:
    """Share of each parameter in what makes a trial one of the best, largest first; they sum to 1.

    ``policy`` is the choice of the policy, the others are named ``policy.parameter``.

    Args:
        result: what a search gave.
        evaluator: ``ped-anova`` (Watanabe et al. 2023; for several objectives too, and it alone knows parameters that
            only some policies have), ``fanova`` (Hutter et al. 2014) or ``mdi`` (mean decrease of impurity in trees),
            which judge the first objective and need scikit-learn.

    Returns:
        Empty where fewer than :data:`LEAST` trials have values, or all have the same.

    Raises:
        InputError: an unknown evaluator, or scikit-learn is not installed.
    """
    from optuna import importance

    check_evaluator(evaluator)
    with quiet_optuna():
        study = _study(result)
    trials = study.get_trials(deepcopy=False)
    if len(trials) < LEAST or len({tuple(each.values) for each in trials}) == 1:
        return {}
    spaces = [{name for name, space in each.distributions.items() if not space.single()} for each in trials]
    if evaluator == EVALUATORS[0]:
        found = importance.get_param_importances(study, params=sorted(set.union(*spaces)))
    else:
        made: Any = {
            "fanova": importance.FanovaImportanceEvaluator,
            "mdi": importance.MeanDecreaseImpurityImportanceEvaluator,
        }[evaluator](seed=0)
        common = sorted(set.intersection(*spaces))
        found = importance.get_param_importances(
            study, evaluator=made, params=common, target=lambda trial: float(trial.values[0])
        )
    return dict(sorted(((name, float(share)) for name, share in found.items()), key=lambda each: (-each[1], each[0])))


def _study(result: SearchResult) -> Study:
    """The trials that have values, and whose parameters the sampler chose, as a study in memory."""
    import optuna

    study = optuna.create_study(directions=["maximize"] * len(result.objectives))
    whole = {row.number for row in result.trials if row.value is not None}
    chosen = [each for each in result.history if each.number in whole and "fixed policy" not in each.params]
    study.add_trials(chosen)
    return study
