"""tune(): a policy's annotated fields by Optuna, over many training clusters at once, against the cost model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ...policies import Choice, make_policy, policy_class, searchable
from ...policies._base import Parameter
from ...sim.spec import Scenario
from ...sim.view import Policy
from .graph_worlds import training_graphs
from .judging import base_s, estimated_loss, exact_s, mean_loss
from .layers import BASES as LAYER_BASES
from .layers import layer_families, layer_worlds
from .operators import BASES as OPERATOR_BASES
from .worlds import training_worlds

if TYPE_CHECKING:
    from optuna.trial import Trial

Work = Literal["split", "layers", "operators"]
TUNED: dict[Work, tuple[str, ...]] = {
    "split": ("attention", "attention-heads"),
    "layers": ("attention-layers",),
    "operators": ("attention-operators",),
}
"""By what is divided."""
KEPT = frozenset({("attention-operators", "micro_batches")})
"""Parameters that stay at their defaults: HEFT does not cut micro-batches either."""
Loss = Callable[[Policy], float]


def tune(*, seed: int = 0, worlds: int = 60, trials: int = 120, work: Work = "split") -> dict[str, Any]:
    """The best parameters of each of the policies (TPE, the defaults first), and their mean loss.

    Args:
        seed: of the clusters and the sampler.
        worlds: training clusters.
        trials: per policy.
        work: what is divided: a batch, against the exact split; layers, against equal stages; operators, against HEFT.
    """
    loss = {"split": _split_loss, "layers": _layer_loss, "operators": _operator_loss}[work](seed, worlds)
    found = {name: _best(name, loss, seed, trials) for name in TUNED[work]}
    flag = "" if work == "split" else f" --{work}"
    made = f"steelyard attention tune --seed {seed} --worlds {worlds} --trials {trials}{flag}"
    return {"made_by": made, "policies": found}


def _split_loss(seed: int, worlds: int) -> Loss:
    scenarios = training_worlds(seed, worlds)
    exact = [exact_s(each) for each in scenarios]
    return lambda policy: mean_loss(scenarios, exact, policy)


def _layer_loss(seed: int, worlds: int) -> Loss:
    scenarios = [scenario for _, scenario in layer_worlds("training", seed, -(-worlds // len(layer_families())))]
    return _loss_over(scenarios, LAYER_BASES)


def _operator_loss(seed: int, worlds: int) -> Loss:
    return _loss_over(training_graphs(seed, worlds), OPERATOR_BASES)


def _loss_over(scenarios: Sequence[Scenario], names: Sequence[str]) -> Loss:
    bases = [base_s(each, names) for each in scenarios]
    return lambda policy: estimated_loss(scenarios, bases, policy)


def _best(name: str, loss: Loss, seed: int, trials: int) -> dict[str, Any]:
    """The parameters of a policy with the least loss, and that."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fields = {key: field for key, field in searchable(policy_class(name)).items() if (name, key) not in KEPT}

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
