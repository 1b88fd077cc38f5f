"""What a search costs beside what Optuna alone costs, measured in one run, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from steelyard.policies import DEFAULTS
from steelyard.policies.search import Space, make_sampler, search
from steelyard.policies.storage import open_storage
from steelyard.sim.spec import Scenario, scenario_from

ROUNDS = 3
TRIALS = 200


def _optuna_alone(storage: Path | None) -> float:
    """Seconds of Optuna's own loop: the same sampler, storage and space, and an objective that does nothing."""
    space = Space.of(list(DEFAULTS))

    def objective(trial: optuna.Trial) -> float:
        space.suggest(trial)
        return 0.0

    started = time.perf_counter()
    with open_storage(storage) as place:
        study = optuna.create_study(storage=place, direction="maximize", sampler=make_sampler("tpe"))
        for number in range(len(space.fixed)):
            space.enqueue(study, number)
        study.optimize(objective, n_trials=TRIALS)
    return time.perf_counter() - started


def _search(scenario: Scenario, storage: Path | None, workers: int | None) -> float:
    return search(scenario, trials=TRIALS, storage=storage, workers=workers).seconds


@pytest.mark.bench
@pytest.mark.parametrize("journal", [False, True], ids=["memory", "journal"])
def test_a_search_costs_at_most_twice_what_optuna_costs(
    journal: bool, make_document: Callable[..., dict[str, object]], tmp_path: Path, scoreboard: Callable[..., None]
) -> None:
    """The scenario has the demo's size: two noisy lanes, 25 steps a launch."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scenario = scenario_from({**make_document(), "sampling": {"launches": 40, "steps": 25}})
    alone, pooled, single = [], [], []
    for turn in range(ROUNDS):
        alone.append(_optuna_alone(tmp_path / f"alone{turn}.log" if journal else None))
        pooled.append(_search(scenario, tmp_path / f"pooled{turn}.log" if journal else None, None))
        single.append(_search(scenario, tmp_path / f"single{turn}.log" if journal else None, 0))
    base = statistics.median(alone)
    ratios = {"pool": statistics.median(pooled) / base, "one process": statistics.median(single) / base}
    scoreboard(
        "search, journal" if journal else "search, memory",
        ratios["pool"],
        aim="≤ 2",
        what=f"a search of {TRIALS} trials beside Optuna alone on an empty objective ({TRIALS / base:.0f} trials/s)",
    )
    assert min(ratios.values()) <= 2.0
