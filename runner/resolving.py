"""What of a scenario only this host knows: the devices behind lanes, the layers and the samples of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from ..sim.checking import validate
from ..sim.spec import Training, expand, inside, shipped_names
from ..sim.workload import Workload
from .calibrations import calibration_path, check_fingerprint, check_workload, latest_calibration
from .data import training_data
from .families import TRAINED


def resolver(runs: Path, *, force: bool = False, notes: list[str] | None = None) -> Callable[..., dict[str, Any]]:
    """What :func:`steelyard.sim.spec.load_scenario` asks for the parts that only this host knows.

    Lanes become the devices of their calibration; a transformers model becomes its layers. ``notes`` collects what a
    run should record.
    """

    def resolve(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
        document = with_model(document, folder)
        cluster = document.get("cluster")
        if not isinstance(cluster, dict) or "lanes" not in cluster:
            return document
        _check_keys(cluster)
        workload = workload_of(document, folder)
        path = calibration_path(document, folder, runs, workload)
        if not path.is_file():
            raise InputError(
                "cluster.lanes", "the lanes of this host are not calibrated", "run `steelyard calibrate` first"
            )
        found = latest_calibration(path)
        check_workload(found, workload)
        if notes is not None and found.feedback:
            notes.append(f"calibration refined by {len(found.cluster.fitted_from)} measured runs")
        if notes is not None:
            notes.extend(check_fingerprint(found, force))
        else:
            check_fingerprint(found, force)
        cluster = found.cluster.model_dump(mode="json", exclude_none=True)
        for device in (each for node in cluster["nodes"] for each in node["devices"] if "layer_profile" in each):
            device["layer_profile"]["model"] = workload.model.name  # equal work, whatever it was called when it ran
        return {**document, "cluster": cluster}

    return resolve


def _check_keys(cluster: dict[str, Any]) -> None:
    """A cluster of lanes says nothing of devices: they are what was measured."""
    import difflib

    known = ("calibration", "hosts", "lanes")
    for key in (str(each) for each in cluster if each not in known):
        near = difflib.get_close_matches(key[:200], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        raise InputError(f"cluster.{key}", "unknown key", hint)


def with_model(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The document with a transformers model (a type's name, or a configuration file) replaced by its layers."""
    workload = document.get("workload")
    model = workload.get("model") if isinstance(workload, dict) else None
    if not isinstance(workload, dict) or not isinstance(model, str) or model in shipped_names("catalog/models"):
        return document
    from importlib.util import find_spec

    if find_spec("transformers") is None or find_spec("torch") is None:
        return document  # the loader says what is wrong with the name
    from .workload import is_model_file, model_from_config

    source: str | Path = model
    if model.endswith(".json"):
        source = inside(folder, model, "workload.model")
        if is_model_file(source):
            return document
    found = model_from_config(source)
    return {**document, "workload": {**workload, "model": found.model_dump(mode="json")}}


def workload_of(document: dict[str, Any], folder: Path | None) -> Workload:
    """The workload of a raw scenario document."""
    part = with_model({"workload": document.get("workload")}, folder)
    return validate(Workload, expand(part, folder).get("workload"), "workload", prefix="workload.")


def job_of(workload: Workload, training: Training, cache: Path, *, seed: int) -> tuple[dict[str, Any], Path]:
    """What workers need to build the model and feed it, and the file of encoded samples.

    Raises:
        InputError: the workload cannot run on lanes (dtype, no configuration).
    """
    if workload.dtype not in ("fp32", "bf16"):
        raise InputError("workload.dtype", f"{workload.dtype} does not run on lanes in this version", "fp32 or bf16")
    config = workload.model.config
    if not config:
        raise InputError("workload.model", "has no transformers configuration, so it cannot run", "use one that has")
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and workload.sequence_length > longest:
        raise InputError("workload.sequence_length", f"is over the model's {longest} positions", "use a shorter one")
    if config.get("task", "sequence-classification") not in TRAINED:
        raise InputError("workload.model", f"is a {config['task']} model", f"lanes train {' or '.join(TRAINED)}")
    data, labels = training_data(workload, training, cache)
    return {
        "model": workload.model.config,
        "labels": labels,
        "seed": seed,
        "dtype": workload.dtype,
        "optimizer": workload.optimizer,
        "learning_rate": training.learning_rate,
        "global_batch": workload.global_batch,
    }, data
