"""tune(): a policy's annotated fields by Optuna, over many training clusters at once, against the cost model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...policies import Choice, make_policy, policy_class, searchable
from ...policies._base import Parameter
from ...sim.view import Policy
from .judging import exact_s, mean_loss
from .layers import base_s, layer_families, layer_loss, layer_worlds
from .worlds import training_worlds

if TYPE_CHECKING:
    from optuna.trial import Trial

TUNED = ("attention", "attention-heads")
LAYERS = ("attention-layers",)
Loss = Callable[[Policy], float]


def tune(*, seed: int = 0, worlds: int = 60, trials: int = 120, layers: bool = False) -> dict[str, Any]:
    """The best parameters of each of :data:`TUNED` or :data:`LAYERS` (TPE, the defaults first), and their mean loss.

    Args:
        seed: of the clusters and the sampler.
        worlds: training clusters.
        trials: per policy.
        layers: whether layers are placed: against equal stages; else a batch is split, against the exact split.
    """
    loss = _layer_loss(seed, worlds) if layers else _split_loss(seed, worlds)
    found = {name: _best(name, loss, seed, trials) for name in (LAYERS if layers else TUNED)}
    made = f"steelyard attention tune --seed {seed} --worlds {worlds} --trials {trials}" + " --layers" * layers
    return {"made_by": made, "policies": found}


def _split_loss(seed: int, worlds: int) -> Loss:
    scenarios = training_worlds(seed, worlds)
    exact = [exact_s(each) for each in scenarios]
    return lambda policy: mean_loss(scenarios, exact, policy)


def _layer_loss(seed: int, worlds: int) -> Loss:
    scenarios = [scenario for _, scenario in layer_worlds("training", seed, -(-worlds // len(layer_families())))]
    bases = [base_s(each) for each in scenarios]
    return lambda policy: layer_loss(scenarios, bases, policy)


def _best(name: str, loss: Loss, seed: int, trials: int) -> dict[str, Any]:
    """The parameters of a policy with the least loss, and that."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fields = searchable(policy_class(name))

    def value(trial: Trial) -> float:
        return loss(make_policy(name, {key: _suggested(trial, field) for key, field in fields.items()}))

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({key: field.default for key, field in fields.items()})
    study.optimize(value, n_trials=trials)
    best = {key: round(each, 4) if isinstance(each, float) else each for key, each in study.best_params.items()}
    return {"parameters": best, "loss": round(study.best_value, 4)}


def _suggested(trial: Trial, field: Parameter) -> Any:
    space = field.space
    assert space is not None, "searchable() gives fields with a space"
    if isinstance(space, Choice):
        return trial.suggest_categorical(field.name, space.options)
    if field.type is int:
        return trial.suggest_int(field.name, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(field.name, space.low, space.high, log=space.log)
