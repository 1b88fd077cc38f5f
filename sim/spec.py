"""Scenario: what a study is about; loading it from TOML or JSON, with every mistake named by its path."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..results.errors import InputError
from ..results.store import read_text
from .checking import first_line, shown, validate
from .device import Cluster, Device, Link, Node
from .disturbances import Disturbance, Rebalance, by_device, check_disturbances
from .sources import check_sources
from .workload import Model, Name, NonNegative, Positive, Spec, Whole, Workload

MAX_INPUT_BYTES = 16 * 2**20
MAX_DEVICES = 100_000

Resolver = Callable[[dict[str, Any], Path | None], dict[str, Any]]
"""Fills in what only the caller's host can know: gets the raw document and its folder, gives the document back."""


class Objective(Spec):
    """What a search makes as large (or small) as it can."""

    metric: Literal["throughput", "step_time_p90", "cost", "energy", "memory_headroom"] = "throughput"
    least_throughput_samples_per_s: Positive | None = None
    """Plans that are slower do not count."""
    most_cost_usd_per_million_samples: Positive | None = None
    """Plans that cost more do not count."""


class Variation(Spec):
    """How much devices and steps differ where nothing was measured; all zero: a deterministic prediction."""

    step_cv: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Coefficient of variation of a piece of work on a device from step to step (log-normal)."""
    device_cv: Annotated[float, Field(ge=0, le=2)] = 0.0
    """The same from device to device: drawn once per launch and device."""
    network_cv: Annotated[float, Field(ge=0, le=2)] = 0.0
    """The same of a collective or transfer."""
    straggler_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of devices that are slow in a launch."""
    straggler_slowdown: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """What the work of a slow one takes, relative to the others."""


class Faults(Spec):
    """Failures of devices and machines over a long training run, and how it survives them."""

    device_mtbf_hours: Positive | None = None
    """Mean time between failures of each device that names none of its own."""
    node_mtbf_hours: Positive | None = None
    """The same of each machine."""
    preemption_notice_s: NonNegative = 0.0
    """Warning before a spot device goes: enough for a checkpoint, and no work is lost."""
    checkpoint_interval_s: Positive | None = None
    """Work between two checkpoints; None: the best interval is looked for."""
    checkpoint_s: Positive | None = None
    """Seconds that a checkpoint stops the training; None: the states over storage_gb_per_s."""
    storage_gb_per_s: Positive = 2.0
    """10^9 bytes per second that all devices together write to storage."""
    restart_s: NonNegative = 300.0
    """From a failure to the first step again: detect, replace, load the checkpoint."""
    preemption_wait_s: NonNegative = 600.0
    """From the loss of a spot device until one is to be had again."""
    work_hours: Positive = 168.0
    """Length of the training run without any failure."""
    runs: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Simulated training runs."""


class Energy(Spec):
    """What a joule costs the world."""

    carbon_kg_per_kwh: NonNegative | None = None
    """Carbon dioxide per kilowatt hour of the grid."""
    power_usage_effectiveness: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Energy of the whole site over that of the devices."""


class Sampling(Spec):
    """How many noisy steps a prediction samples."""

    launches: Annotated[int, Field(ge=1, le=100_000)] = 40
    """Fresh process groups; each draws its own offset per device."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 25
    """Steps per launch."""
    search_launches: Annotated[int, Field(ge=1, le=100_000)] = 4
    """Launches per trial of a search."""


class Calibrating(Spec):
    """How much is measured of each lane before anything is predicted."""

    launches: Annotated[int, Field(ge=1, le=1000)] = 4
    """Fresh groups of processes: what differs between them is the noise of a launch."""
    rounds: Annotated[int, Field(ge=1, le=1000)] = 2
    """Times that each size is measured in a launch."""
    seconds_per_point: Annotated[float, Field(gt=0, le=3600)] = 0.4
    least_steps: Annotated[int, Field(ge=1, le=1000)] = 3
    """Steps per point, however long they take."""


class Replay(Spec):
    """How the measurement is made."""

    launches: Annotated[int, Field(ge=1, le=1000)] = 5
    steps: Annotated[int, Field(ge=1, le=100_000)] = 12
    """Measured steps per plan and launch, spread over the rounds."""
    rounds: Annotated[int, Field(ge=1, le=1000)] = 3
    warmup_steps: Annotated[int, Field(ge=0, le=1000)] = 2
    """Steps before the first measured one, per plan and round."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """A collective that takes longer has lost a worker."""
    winners: Whole = 3
    """Distinct plans of the search that are replayed beside the baselines."""
    gauge_launches: Annotated[int, Field(ge=0, le=1000)] = 2
    """Launches that find the lanes' present speed before anything is predicted; 0: tables are taken as they are."""
    model_error_percent: Annotated[float, Field(ge=0, le=100)] = 2.5
    """What predictions from a lane's tables are off by beside the noise, as a standard deviation: their intervals are
    wider by it, except those from tables that runs refined. The default is what an earlier suite of replays showed."""


class Training(Spec):
    """What the devices train on when the plan runs for real."""

    data: Literal["texts", "random"] = "texts"
    """``texts``: the labelled short texts of the ``demo`` extra; ``random``: tokens and labels drawn at random."""
    learning_rate: Positive = 1e-3
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 300
    """Optimizer steps of ``steelyard train``."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the texts that is only evaluated on."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of every dropout of the model while ``steelyard train`` trains it; predictions do not know of it."""
    checkpoint_every_steps: Whole | None = None
    """Steps between two checkpoints; 0: only at the end; None: the best by the failures of ``faults``, else by time."""
    checkpoint_every_s: Positive = 10.0
    """Predicted seconds of steps between two checkpoints, where nothing else says."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 3
    restarts: Annotated[int, Field(ge=0, le=100_000)] = 5
    """Faults in a row without a new checkpoint between them that training starts anew after; then it gives up."""


class Scenario(Spec):
    """Cluster, workload and objective: what a study is about."""

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    name: Name
    summary: str = ""
    source: str = ""
    cluster: Cluster
    workload: Workload
    policies: Annotated[list[Name], Field(max_length=100)] = Field(default_factory=list)
    """What to simulate where the command names no policy, as ``--policy`` takes it: ``grid(pipeline=2)``."""
    objective: Objective = Objective()
    sampling: Sampling = Sampling()
    variation: Variation = Variation()
    faults: Faults | None = None
    disturbances: Annotated[list[Disturbance], Field(max_length=10_000)] = Field(default_factory=list)
    """What happens to devices in the midst of a run: it is then simulated as a whole, changes of plan included."""
    rebalance: Rebalance | None = None
    """When adaptive policies are asked again; None: never, unless a device of the plan is lost."""
    energy: Energy = Energy()
    calibration: Calibrating = Calibrating()
    replay: Replay = Replay()
    training: Training = Training()
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0

    @model_validator(mode="after")
    def _disturbed(self) -> Self:
        check_disturbances(self.disturbances, self.cluster)
        return self


def load_scenario(path: str | Path, settings: Iterable[str] = (), resolve: Resolver | None = None) -> Scenario:
    """Read a scenario: a TOML or JSON file, or the name of a shipped one.

    Args:
        path: file, or name as listed by ``steelyard list scenarios``.
        settings: overrides ``a.b.c=value`` (the value in TOML's notation; a bare word is a string).
        resolve: fills in the parts that only this host knows (measured lanes); without it they are an error.

    Raises:
        InputError: anything that is wrong with the file, by the path of the field.
    """
    document, folder = read_document(path)
    for setting in settings:
        apply_setting(document, setting)
    if resolve is not None:
        document = resolve(document, folder)
    return scenario_from(document, folder)


def scenario_from(document: Mapping[str, Any], folder: Path | None = None) -> Scenario:
    """Validate a scenario document after replacing its references to the catalog by what they name."""
    if not isinstance(document, Mapping):
        raise InputError("scenario", "is not a table", "start from `steelyard init`")
    scenario = validate(Scenario, expand(dict(document), folder), "scenario")
    _check_profiles(scenario)
    return scenario


def _check_profiles(scenario: Scenario) -> None:
    """Refuse a profile by layers of another workload: its owner would get datasheet times and not know."""
    from .cost import layer_profile_of

    workload = scenario.workload
    for device in scenario.cluster.devices:
        found = device.layer_profile
        if found is not None and layer_profile_of(device, workload) is None:
            ran = f"{found.model}, {len(found.points[0].forward_s)} layers, {found.sequence_length}, {found.dtype}"
            here = f"{workload.model.name}, {len(workload.layers)} layers, {workload.sequence_length}, {workload.dtype}"
            problem = f"was measured of {ran}, the workload is {here}"
            raise InputError(f"cluster: {device.name}: layer_profile", problem, "make them equal, or leave it out")


def read_document(path: str | Path) -> tuple[dict[str, Any], Path | None]:
    """The raw document of a scenario and the folder its relative paths start from (None for a shipped one)."""
    file, shipped = Path(path), shipped_names("scenarios")
    if _is_file(file):
        return parse_file(file), file.resolve().parent
    if str(path) in shipped:
        return parse_toml(shipped_text("scenarios", str(path)), str(path)), None
    near = difflib.get_close_matches(str(path)[:200], shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else "give a file, or a name from `steelyard list scenarios`"
    raise InputError(str(path)[:200] or "''", "no such scenario", hint)


def parse_file(file: Path) -> dict[str, Any]:
    """A TOML or JSON file (by its ending) as a table, at most :data:`MAX_INPUT_BYTES` long."""
    text = read_text(file, MAX_INPUT_BYTES)
    if file.suffix != ".json":
        return parse_toml(text, str(file))
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(str(file), f"is not JSON: {first_line(error)}", "check its syntax") from error
    if not isinstance(document, dict):
        raise InputError(str(file), "is not a table", "the file must hold one object")
    return document


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML text; a syntax error becomes an :class:`InputError` that names the place."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits is a plain ValueError
        raise InputError(where, f"is not TOML: {first_line(error)}", "check its syntax") from error


def apply_setting(document: dict[str, Any], setting: str) -> None:
    """Apply one ``a.b.c=value`` to a document in place; list entries are addressed by number."""
    key, separator, text = setting.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise InputError(f"--set {setting}", "is not key=value", "for example --set workload.global_batch=64")
    target: Any = document
    for part in parts[:-1]:
        target = _descend(target, part, setting)
    last: str | int = parts[-1]
    if isinstance(target, list):
        last = _index(target, parts[-1], setting)
    elif not isinstance(target, dict):
        raise InputError(f"--set {setting}", f"{parts[-2]} is not a table", "check the path")
    target[last] = parse_value(text.strip())


def parse_value(text: str) -> Any:
    """A value in TOML's notation; what is not one is taken as a string."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text


def expand(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Replace names of catalog devices, links and models by what they name, and counts by single devices.

    Entries of the cluster come back validated, each under the path that the user wrote: once they are counted out,
    their places are others.
    """
    result = dict(document)
    if isinstance(cluster := result.get("cluster"), dict):
        result["cluster"] = _expand_cluster(cluster, folder)
        if isinstance(events := result.get("disturbances"), list):
            result["disturbances"] = by_device(events, result["cluster"].get("nodes"))
    if isinstance(workload := result.get("workload"), dict) and isinstance(workload.get("model"), str):
        result["workload"] = {**workload, "model": load_model(workload["model"], folder)}
    return result


def load_model(name: str, folder: Path | None = None) -> Model:
    """A catalog model by name, or a model file inside the scenario's folder."""
    if name in shipped_names("catalog/models"):
        text = _data("catalog/models").joinpath(f"{name}.json").read_text(encoding="utf-8")
        model = validate(Model, json.loads(text), f"catalog model {name}", prefix=f"catalog model {name}: ")
        if not model.source.strip():
            raise InputError(f"catalog model {name}: source", "is missing", 'add "source": "an address", or "recalled"')
        return model
    if name.endswith(".json"):
        return validate(Model, parse_file(inside(folder, name, "workload.model")), name, prefix=f"{name}: ")
    near = difflib.get_close_matches(name[:200], shipped_names("catalog/models"), n=1)
    hint = (
        f"did you mean {near[0]}?" if near else "`steelyard list models` names them; `steelyard init --model` makes one"
    )
    raise InputError("workload.model", f"{shown(name)} is not in the catalog", hint)


def load_device(name: str) -> Device:
    """A catalog device by name."""
    return validate(
        Device, _catalog_entry("devices", name, "device"), f"catalog device {name}", prefix=f"catalog device {name}: "
    )


def load_link(name: str, field: str = "link") -> Link:
    """A catalog link by name; ``field`` is where the name stands, for the error when there is none."""
    return validate(Link, _catalog_entry("links", name, field), f"catalog link {name}", prefix=f"catalog link {name}: ")


def inside(folder: Path | None, name: str, field: str) -> Path:
    """A path from an input file, which must stay inside the file's folder.

    Raises:
        InputError: absolute, climbing out (also by a symbolic link), or there is no folder.
    """
    if folder is None:
        raise InputError(field, f"{shown(name)} is a path, a shipped scenario has no folder", "copy the scenario first")
    try:
        target = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: symbolic links in a circle
        raise InputError(field, f"{shown(name)} is not a usable path", "use a plain relative path") from error
    if not target.is_relative_to(folder.resolve()):
        raise InputError(field, f"{shown(name)} leaves the folder of the scenario", "put the file beside the scenario")
    return target


def shipped_names(folder: str) -> list[str]:
    """Names of the data files in a shipped folder (``scenarios``, ``catalog/devices``, ...), sorted."""
    return sorted(
        entry.name.rsplit(".", 1)[0] for entry in _data(folder).iterdir() if entry.name.endswith((".toml", ".json"))
    )


def simulated_names() -> list[str]:
    """Names of the shipped scenarios that need nothing of a host: their cluster is no host's lanes."""
    clusters = {name: read_document(name)[0].get("cluster", {}) for name in shipped_names("scenarios")}
    return [name for name, cluster in clusters.items() if "lanes" not in cluster]


def shipped_text(folder: str, name: str) -> str:
    """Text of a shipped TOML file."""
    return _data(folder).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def _expand_cluster(cluster: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    if "lanes" in cluster:
        raise InputError(
            "cluster.lanes", "the lanes of this host are not calibrated", "run `steelyard calibrate` first"
        )
    result = dict(cluster)
    _expand_link(result, "network", "cluster.network")
    if isinstance(result.get("switches"), list):
        result["switches"] = [dict(each) if isinstance(each, dict) else each for each in result["switches"]]
        for index, switch in enumerate(result["switches"]):
            _expand_link(switch, "uplink", f"cluster.switches.{index}.uplink")
    if isinstance(result.get("nodes"), list):
        nodes: list[Any] = []
        room = MAX_DEVICES
        for index, entry in enumerate(result["nodes"]):
            copies = _expand_node(entry, index, room, folder)
            room -= sum(len(node.devices) for node in copies if isinstance(node, Node))
            nodes.extend(copies)
        result["nodes"] = nodes
    return result


def _expand_link(holder: Any, key: str, where: str) -> None:
    """Replace a link that is named by what the catalog says of it; ``{ link = name, ... }`` has overrides."""
    value = holder.get(key) if isinstance(holder, dict) else None
    if isinstance(value, str):
        holder[key] = load_link(value, where)
    elif isinstance(value, dict) and "link" in value:
        if not isinstance(value["link"], str):
            raise InputError(f"{where}.link", "is not a name", "`steelyard list links` names them")
        own = {name: each for name, each in value.items() if name != "link"}
        catalog = _catalog_entry("links", value["link"], f"{where}.link")
        holder[key] = validate(Link, {**catalog, **own}, where, prefix=f"{where}.")


def _expand_node(entry: Any, index: int, room: int, folder: Path | None) -> Sequence[Any]:
    """One entry of the cluster as single nodes; what is no table is left for the validation of the whole."""
    if not isinstance(entry, dict):
        return [entry]
    where = f"cluster.nodes.{index}"
    count = _count(entry, where, room)
    own = {"name": f"node{index}", **{key: value for key, value in entry.items() if key != "count"}}
    _expand_link(own, "link", f"{where}.link")
    _expand_link(own, "network", f"{where}.network")
    if isinstance(own.get("devices"), list):
        devices: list[Any] = []
        for number, device in enumerate(own["devices"]):
            left = room // count - len(devices)
            devices.extend(_expand_device(device, f"{where}.devices.{number}", left, folder))
        own["devices"] = devices
    node = validate(Node, own, where, prefix=f"{where}.")
    return [node] if count == 1 else [_copy(node, f"{node.name}-{number}") for number in range(count)]


def _copy(node: Node, name: str) -> Node:
    """A node under another name, which the names of its devices carry too."""
    devices = [device.model_copy(update={"name": f"{name}/{device.name}"}) for device in node.devices]
    return node.model_copy(update={"name": name, "devices": devices})


def _expand_device(entry: Any, where: str, room: int, folder: Path | None) -> Sequence[Any]:
    """One entry of a node as single devices: a catalog name with overrides, or written out; numbered when counted."""
    if isinstance(entry, str):
        entry = {"device": entry}
    if not isinstance(entry, dict):
        return [entry]
    count = _count(entry, where, room)
    own = {key: value for key, value in entry.items() if key not in ("count", "device")}
    if "device" in entry:
        if not isinstance(entry["device"], str):
            raise InputError(f"{where}.device", "is not a name", "`steelyard list devices` names them")
        own = {**_catalog_entry("devices", entry["device"], f"{where}.device"), **own}
    if isinstance(own.get("layer_profile"), str):
        from .layer_profiles import resolve

        own["layer_profile"] = resolve(folder, own["layer_profile"], f"{where}.layer_profile")
    device = validate(Device, own, where, prefix=f"{where}.")
    if count == 1:
        return [device]
    return [device.model_copy(update={"name": f"{device.name}-{number}"}) for number in range(count)]


def _count(entry: dict[str, Any], where: str, room: int) -> int:
    count = entry.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"{where}.count", f"is {shown(count)}", "must be a whole number from 1")
    if count > room:
        raise InputError(f"{where}.count", f"makes more than {MAX_DEVICES} devices", "model a part of the cluster")
    return count


def _catalog_entry(folder: str, name: str, field: str) -> dict[str, Any]:
    known = shipped_names(f"catalog/{folder}")
    if name not in known:
        near = difflib.get_close_matches(name[:200], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"`steelyard list {folder}` names them"
        raise InputError(field, f"{shown(name)} is not in the catalog", hint)
    entry = parse_toml(shipped_text(f"catalog/{folder}", name), f"catalog {folder} {name}")
    kind: type[Device | Link] = Device if folder == "devices" else Link
    what = folder.removesuffix("s")
    # As it stands, before a scenario's overrides: what the catalog says must have a source, what a user says need not.
    check_sources(validate(kind, entry, f"catalog {what} {name}", prefix=f"catalog {what} {name}: "))
    return entry


def _data(folder: str) -> Traversable:
    place: Traversable = resources.files("steelyard.sim")
    for part in folder.split("/"):
        place = place.joinpath(part)
    return place


def _descend(target: Any, part: str, setting: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, part, setting)]
    if not isinstance(target, dict):
        raise InputError(f"--set {setting}", f"there is no table that holds {part}", "check the path")
    return target.setdefault(part, {})


def _index(target: list[Any], part: str, setting: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) < 10) or int(part) >= len(target):
        raise InputError(f"--set {setting}", f"{part} is no entry of a list of {len(target)}", "entries count from 0")
    return int(part)


def _is_file(path: Path) -> bool:
    """Whether a path is a file; one that the system cannot even look at (too long, say) is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
