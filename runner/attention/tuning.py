"""tune(): a policy's annotated fields by Optuna, over many training clusters at once, against the cost model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...policies import Choice, make_policy, policy_class, searchable
from ...policies._base import Parameter
from .judging import exact_s, mean_loss
from .layers import layer_loss, layer_worlds
from .worlds import training_worlds

if TYPE_CHECKING:
    from optuna.trial import Trial

TUNED = ("attention", "attention-heads", "attention-layers")
LAYERS = "attention-layers"
SLOWER = 4
"""Layers take longer: so many times fewer trials."""


def tune(*, seed: int = 0, worlds: int = 60, trials: int = 120) -> dict[str, Any]:
    """The best parameters of each of :data:`TUNED` (TPE, the defaults first), and their mean loss.

    That of a split is against the exact one, that of layers against equal stages.

    Args:
        seed: of the clusters and the sampler.
        worlds: training clusters.
        trials: per policy; of layers :data:`SLOWER` times fewer.
    """
    import optuna

    scenarios = training_worlds(seed, worlds)
    exact = [exact_s(each) for each in scenarios]
    to_place = [scenario for _, scenario in layer_worlds("training", seed, max(1, worlds // 8))]
    found: dict[str, Any] = {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in TUNED:
        fields = searchable(policy_class(name))

        def loss(trial: Trial, name: str = name, fields: Any = fields) -> float:
            policy = make_policy(name, {key: _suggested(trial, field) for key, field in fields.items()})
            return layer_loss(to_place, policy) if name == LAYERS else mean_loss(scenarios, exact, policy)

        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial({key: field.default for key, field in fields.items()})
        study.optimize(loss, n_trials=-(-trials // SLOWER) if name == LAYERS else trials)
        best = {key: round(value, 4) if isinstance(value, float) else value for key, value in study.best_params.items()}
        found[name] = {"parameters": best, "loss": round(study.best_value, 4)}
    made = f"steelyard attention tune --seed {seed} --worlds {worlds} --trials {trials}"
    return {"made_by": made, "policies": found}


def _suggested(trial: Trial, field: Parameter) -> Any:
    space = field.space
    assert space is not None, "searchable() gives fields with a space"
    if isinstance(space, Choice):
        return trial.suggest_categorical(field.name, space.options)
    if field.type is int:
        return trial.suggest_int(field.name, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(field.name, space.low, space.high, log=space.log)
