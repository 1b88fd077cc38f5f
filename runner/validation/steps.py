"""Scores on published training steps: the calibration is fitted on some rows, and the engine predicts the others.

Rows without a layer profile share one fit: the efficiencies of devices and hosts are common to all clusters and models,
and each cluster has what its devices sustain and what its network reaches. Where every device has a profile of the
model, only the network is fitted. Beside the step, the gradients' all-reduce and the peak memory are scored where they
were measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...results.errors import InputError
from ...results.metrics import stream
from ...sim import layer_profiles, memory
from ...sim.device import LayerProfile
from . import collectives as all_reduces
from .cases import Calibration, World, plan_of, predict, workload_of
from .fit import Case, case_of, constant_mfu, fit, least_squares_baseline, sync_s
from .rows import INNER_LINKS, MODELS, ModelNumbers, StepRow, catalog_name, has_steps, named_in, read_rows
from .scores import Score, figures, outliers

FOLDS = 5
LEAVE_ONE_OUT_UP_TO = 30
"""Rows of a small set are left out one at a time."""
CONSTANT, LEAST_SQUARES = "constant MFU", "non-negative least squares"
Fold = list[int]


def world_of(folder: Path) -> tuple[World, ModelNumbers | None]:
    """What a folder measured beside the steps: collectives, and layer profiles with the model that they are of."""
    tables: list[Any] = []
    link = ""
    measured = all_reduces.files(folder)
    if measured:  # of several, the first by name: tables of different machines must not be mixed
        rows = all_reduces.read_rows(measured[0])
        per_node = all_reduces.PER_NODE
        tables = all_reduces.fit_tables(rows, backend="nccl", per_node=per_node, source=measured[0].name)
        link = INNER_LINKS.get(catalog_name(named_in("", measured[0])), "")
    profiles: dict[str, LayerProfile] = {}
    for path in sorted(folder.glob("*.json")):
        if "profiles" in json.loads(path.read_text(encoding="utf-8")):
            profiles.update({catalog_name(name): each for name, each in layer_profiles.load(path).items()})
    return World(tuple(tables), link, profiles), _profiled_model(profiles)


def _profiled_model(profiles: dict[str, LayerProfile]) -> ModelNumbers | None:
    if not profiles:
        return None
    profile = next(iter(profiles.values()))
    numbers = MODELS.get(profile.model.upper())
    if numbers is None:
        known = ", ".join(MODELS)
        raise InputError("model", f"{profile.model!r} of the layer profiles is not known", f"known: {known}")
    return ModelNumbers(sequence_length=profile.sequence_length, name=profile.model, **numbers)


def read_cases(folder: Path) -> tuple[list[Case], World]:
    """All measured steps in a folder, and what was measured beside them.

    Args:
        folder: with CSV files as :mod:`.rows` describes them, and what :func:`world_of` reads.
    """
    world, model = world_of(folder)
    files = [path for path in sorted(folder.glob("*.csv")) if has_steps(path)]
    return [case_of(row, world) for path in files for row in read_rows(path, model)], world


def validate(
    cases: Sequence[Case], world: World, *, seed: int = 0, told: Callable[[str], None] = lambda _: None
) -> list[Score]:
    """Score the engine on measured training steps.

    Args:
        cases: the steps, as :func:`read_cases` gives them.
        world: what was measured beside them.
        seed: of the folds.
        told: is told what is being done.
    """
    scores: list[Score] = []
    for together in _sets(cases):
        for split, folds in _splits(together, seed):
            told(f"{len(together)} training steps, {split}, {len(folds)} fits")
            scores += _scored(together, world, split, folds)
    return scores


def fitted(cases: Sequence[Case]) -> Calibration:
    """The calibration that all rows give: what to simulate other plans on the same clusters with."""
    calibration = Calibration()
    for together in _sets(cases):
        calibration = fit(together, calibration)
    return calibration


def _sets(cases: Sequence[Case]) -> list[list[Case]]:
    """Rows that are fitted together: all that are not profiled, and the profiled ones of each cluster."""
    sets: dict[str, list[Case]] = {}
    for case in cases:
        sets.setdefault(case.row.cluster if case.profiled else "", []).append(case)
    return list(sets.values())


def _splits(cases: Sequence[Case], seed: int) -> list[tuple[str, list[Fold]]]:
    """How rows are held out: seeded folds, the same share of each cluster; and by model where there are several."""
    count = len(cases) if len(cases) <= LEAVE_ONE_OUT_UP_TO else FOLDS
    name = "leave-one-out" if count == len(cases) else f"{count}-fold"
    splits = [(name, _folds(cases, count, seed))]
    models: dict[object, Fold] = {}
    for index, case in enumerate(cases):
        models.setdefault(case.row.model, []).append(index)
    return [*splits, ("leave-one-model-out", list(models.values()))] if len(models) > 1 else splits


def _folds(cases: Sequence[Case], count: int, seed: int) -> list[Fold]:
    order: list[int] = []
    for cluster in dict.fromkeys(case.row.cluster for case in cases):
        members = [index for index, case in enumerate(cases) if case.row.cluster == cluster]
        order += [members[place] for place in stream(seed, "folds", cluster).permutation(len(members))]
    return [order[start::count] for start in range(count)]


def _scored(cases: Sequence[Case], world: World, split: str, folds: Iterable[Fold]) -> list[Score]:
    predicted = {name: [0.0] * len(cases) for name in ("engine", CONSTANT, LEAST_SQUARES)}
    synced = [0.0] * len(cases)
    for fold in folds:
        training = [case for index, case in enumerate(cases) if index not in set(fold)]
        calibration = fit(training)
        baselines = {CONSTANT: constant_mfu(training), LEAST_SQUARES: least_squares_baseline(training)}
        for index in fold:
            row = cases[index].row
            predicted["engine"][index] = predict(row, calibration, world)
            synced[index] = sync_s(cases[index], calibration)
            for name, baseline in baselines.items():
                predicted[name][index] = baseline(cases[index])
    scores = []
    for cluster in dict.fromkeys(case.row.cluster for case in cases):
        members = [index for index, case in enumerate(cases) if case.row.cluster == cluster]
        scores += _cluster_scores(cases, members, split, predicted)
        scores += _sync_scores(cases, members, split, synced)
    if split != "leave-one-model-out":
        scores += _memory_scores(cases, split, list(folds))
    return scores


def _cluster_scores(
    cases: Sequence[Case], members: Sequence[int], split: str, predicted: dict[str, list[float]]
) -> list[Score]:
    """The step times of one cluster; once more without rows whose all-reduce is suspect."""
    suspect = [index for index in members if cases[index].suspect]
    chosen = [(split, list(members))]
    if suspect:
        left = [index for index in members if index not in suspect]
        lines = ", ".join(str(cases[index].row.line) for index in suspect)
        chosen.append((f"{split}, without line {lines}", left))
    return [_step_score(cases, indices, name, predicted) for name, indices in chosen]


def _step_score(cases: Sequence[Case], indices: Sequence[int], split: str, predicted: dict[str, list[float]]) -> Score:
    rows = [cases[index].row for index in indices]
    measured, questions = [row.step_time_s for row in rows], [row.question for row in rows]
    values = {name: [found[index] for index in indices] for name, found in predicted.items()}
    return Score(
        data=f"step time, {rows[0].cluster}",
        split=split,
        rows=len(rows),
        model=figures(values["engine"], measured, questions),
        baselines={name: figures(values[name], measured, questions) for name in (CONSTANT, LEAST_SQUARES)},
        outliers=outliers(values["engine"], measured, [_shown(row) for row in rows]),
    )


def _sync_scores(cases: Sequence[Case], members: Sequence[int], split: str, predicted: list[float]) -> list[Score]:
    """The gradients' all-reduce, where it was measured over several pipelines."""
    sound = [index for index in members if cases[index].synced_s]
    if not sound:
        return []
    left = sum(cases[index].row.gradient_all_reduce_s is not None for index in members) - len(sound)
    rows = [cases[index].row for index in sound]
    measured = [cases[index].synced_s for index in sound]
    values = [predicted[index] for index in sound]
    return [
        Score(
            data=f"gradient all-reduce, {rows[0].cluster}",
            split=split,
            rows=len(rows),
            model=figures(values, measured),
            baselines={"median of the rows": figures([float(np.median(measured))] * len(rows), measured)},
            outliers=outliers(values, measured, [_shown(row) for row in rows]),
            notes=[f"{left} rows left out: a single pipeline has none, or it takes most of the step"],
        )
    ]


def _memory_scores(cases: Sequence[Case], split: str, folds: list[Fold]) -> list[Score]:
    """Peak memory: the closed form's bytes, and two figures of the framework: what it takes, and what it reserves more.

    Rows that are scored were left out of the fit of the two.
    """
    known = [index for index, case in enumerate(cases) if case.row.max_memory_bytes]
    if len(known) < 3:
        return []
    measured = {index: cases[index].row.max_memory_bytes or 0.0 for index in known}
    bytes_of = {index: _peak_bytes(cases[index].row) for index in known}
    predicted: dict[str, dict[int, float]] = {"model": {}, "median of the rows": {}, LEAST_SQUARES: {}}
    for fold in folds:
        training = [index for index in known if index not in fold]
        affine = _relative_nnls([[1.0, bytes_of[index]] for index in training], [measured[i] for i in training])
        plain = _relative_nnls([_sizes(cases[i].row) for i in training], [measured[i] for i in training])
        for index in (each for each in fold if each in measured):
            predicted["model"][index] = float(np.dot(affine, [1.0, bytes_of[index]]))
            predicted[LEAST_SQUARES][index] = float(np.dot(plain, _sizes(cases[index].row)))
            predicted["median of the rows"][index] = float(np.median([measured[i] for i in training]))
    order = list(predicted["model"])
    truths = [measured[index] for index in order]
    overhead, share = _relative_nnls([[1.0, bytes_of[i]] for i in order], truths)
    judged = {name: figures(list(found.values()), truths) for name, found in predicted.items()}
    rows = [_shown(cases[index].row) for index in order]
    return [
        Score(
            data=f"peak memory, {cases[0].row.cluster}",
            split=split,
            rows=len(order),
            model=judged.pop("model"),
            baselines=judged,
            outliers=outliers(list(predicted["model"].values()), truths, rows),
            notes=[
                f"fitted: {overhead / 2**30:.2f} GiB of overhead, {100 * (share - 1):.1f} % reserved beyond the peak"
            ],
        )
    ]


def _peak_bytes(row: StepRow) -> float:
    workload = workload_of(row, Calibration())
    return max(each.total for each in memory.peak(workload, plan_of(row)).values())


def _sizes(row: StepRow) -> list[float]:
    """Features of the memory baseline: a constant, the micro-batch, parameters per device, samples in flight."""
    part = 1 / (row.stages * row.degrees[0][0])
    flight = min(row.micro_batches, row.stages)
    return [1.0, row.micro_batch * part, part, row.micro_batch * flight * part]


def _relative_nnls(features: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    from scipy.optimize import nnls

    table = np.array(features, dtype=float) / np.array(values, dtype=float)[:, None]
    scale = np.maximum(table.max(axis=0), 1e-300)
    found = nnls(table / scale, np.ones(len(values)))[0] / scale
    return [float(each) for each in found]


def _shown(row: StepRow) -> dict[str, Any]:
    return {"line": row.line, **row.shown}
