"""A study small enough to run for real within seconds: a tiny BERT, random tokens, two lanes of this host."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from steelyard.runner.calibrate import calibrate
from steelyard.runner.devices import NamedLane, available_cpus
from steelyard.runner.execution import division
from steelyard.runner.worker.signs import FOR_EVER
from steelyard.sim.device import (
    Cluster,
    CollectivePoint,
    CollectiveTable,
    Device,
    Lane,
    Link,
    Node,
    Profile,
    ProfilePoint,
)
from steelyard.sim.plan import Plan
from steelyard.sim.spec import Scenario, Training, parse_file
from steelyard.sim.workload import Workload

pytest.importorskip("torch", reason="real lanes need the runner extra")

CONFIG = {
    "model_type": "bert",
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="session")
def tools() -> Callable[..., None]:
    """Skips a test, with the reason, where a program that it asks the system with is not installed."""

    def check(*names: str) -> None:
        missing = [name for name in names if shutil.which(name) is None]
        if missing:
            pytest.skip(f"{' and '.join(missing)} (of iproute2 or util-linux) not installed here")

    return check


@pytest.fixture(scope="session")
def hanging() -> Callable[[Scenario, dict[str, Any], Sequence[str], str], dict[str, Any]]:
    """Makes the task of three steps of a plan, in whose second a lane's passes do not end."""

    def make(scenario: Scenario, plan: dict[str, Any], names: Sequence[str], lane: str) -> dict[str, Any]:
        hung = [FOR_EVER if name == lane else 1.0 for name in names]
        return {
            "op": "course",
            "division": division(Plan.parse(plan), scenario.workload, names),
            "ranks": list(range(len(names))),
            "total": 3,
            "points": [],
            "slow": [[1.0] * len(names), hung, [1.0] * len(names)],
        }

    return make


@pytest.fixture(scope="session")
def tiny_workload() -> Workload:
    from steelyard.runner.workload import model_from_config

    config = {**CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return Workload(model=model_from_config(config, name="tiny"), global_batch=30, sequence_length=16)


@pytest.fixture(scope="session")
def lanes() -> list[NamedLane]:
    """Two lanes, on different cores where there are two; caps that this processor may ignore do no harm here."""
    cores = available_cpus()
    return [
        NamedLane(name="full", cap="full", cpus=[cores[0]]),
        NamedLane(name="sse", cap="sse", cpus=[cores[-1]]),
    ]


@pytest.fixture(scope="session")
def tiny_scenario(tiny_workload: Workload, lanes: list[NamedLane]) -> Scenario:
    """Tables as a calibration would give them, but written down: these tests are about the road, not the accuracy."""
    devices = [
        Device(
            name=lane.name,
            peak_tflops={"fp32": rate},
            memory_gib=4,
            memory_bandwidth_gb_per_s=10,
            lane=Lane.model_validate(lane.model_dump(exclude={"name"})),
            profile=Profile(
                workload=tiny_workload.key,
                points=[
                    ProfilePoint(
                        micro_batch=size, forward_s=1e-3 + 1e-4 * size / rate, backward_s=2e-3 + 2e-4 * size / rate
                    )
                    for size in (2, 5, 11, 17, 23, 31)
                ],
                optimizer_s=1e-3,
                step_residuals=[-0.02, 0.0, 0.02],
                launch_residuals=[-0.01, 0.0, 0.01],
            ),
        )
        for lane, rate in zip(lanes, (0.1, 0.05), strict=True)
    ]
    table = CollectiveTable(
        backend="gloo",
        devices=[lane.name for lane in lanes],
        points=[CollectivePoint(bytes=2**10, seconds=1e-4), CollectivePoint(bytes=2**20, seconds=1e-3)],
    )
    link = Link(name="loopback", latency_us=50, bandwidth_gb_per_s=1)
    return Scenario.model_validate(
        {
            "name": "tiny",
            "cluster": Cluster(nodes=[Node(name="host", devices=devices, link=link)], collectives=[table]).model_dump(),
            "workload": tiny_workload.model_dump(),
            "training": Training(data="random").model_dump(),
            "replay": {
                "launches": 2,
                "steps": 4,
                "rounds": 2,
                "warmup_steps": 1,
                "timeout_s": 30.0,
                "gauge_launches": 0,
            },
        }
    )


@pytest.fixture(scope="session")
def write_tiny(lanes: list[NamedLane]) -> Callable[[Path], Path]:
    """Fills a folder with what a user writes: a scenario, lanes by hand, a model configuration; random tokens."""
    scenario = {
        "name": "tiny",
        "cluster": {"lanes": "lanes.toml"},
        "workload": {"model": "tiny.json", "global_batch": 30, "sequence_length": 16},
        "training": {"data": "random", "steps": 20},
        "calibration": {"launches": 2, "rounds": 1, "seconds_per_point": 0.02},
        "replay": {"launches": 2, "steps": 4, "rounds": 2, "warmup_steps": 1, "gauge_launches": 0},
    }

    def write(folder: Path) -> Path:
        (folder / "tiny.json").write_text(json.dumps(CONFIG))
        (folder / "lanes.toml").write_text(tomli_w.dumps({"lanes": [lane.model_dump(mode="json") for lane in lanes]}))
        (folder / "tiny.toml").write_text(tomli_w.dumps(scenario))
        return folder

    return write


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own of a size, as ``mount`` has it; gone after the test."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
        answer = subprocess.run(words, capture_output=True, text=True)
        if answer.returncode != 0:
            place.rmdir()
            pytest.skip(f"this host lets nobody mount a small disk: {answer.stderr.strip()}")
        return place

    yield mount
    if place.exists():
        subprocess.run(["umount", place], check=True)


DRIVER = """
import json, sys
from pathlib import Path
from steelyard.runner.devices import NamedLane
from steelyard.results.errors import WorkerFailedError
from steelyard.runner.launch import run_group
job, lanes, tasks, data = json.loads(sys.argv[1])
try:
    lanes = [NamedLane.model_validate(lane) for lane in lanes]
    run_group(lanes, tasks, job, timeout_s=20, data=Path(data))
except WorkerFailedError as error:
    print('FAILED', error); sys.exit(1)
"""


@pytest.fixture
def driver(tiny_scenario: Scenario, tmp_path: Path) -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """Starts a process of its own that runs a group, each task for so many seconds, so that a test can kill it."""
    from steelyard.runner.resolving import job_of

    @contextmanager
    def start(lanes: Sequence[NamedLane], *, seconds: float = 60, tasks: int = 1) -> Iterator[subprocess.Popen[str]]:
        job, data = job_of(tiny_scenario.workload, tiny_scenario.training, tmp_path, seed=0)
        task = {"op": "profile", "micro_batch": 4, "seconds": seconds, "least": 1}
        words = json.dumps([job, [lane.model_dump(mode="json") for lane in lanes], [task] * tasks, str(data)])
        command = [sys.executable, "-c", DRIVER, words]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                yield process
            finally:
                process.kill()

    return start


@pytest.fixture
def tiny_folder(tmp_path: Path, write_tiny: Callable[[Path], Path]) -> Path:
    """A fresh folder of :func:`write_tiny`."""
    return write_tiny(tmp_path)


@dataclass(frozen=True)
class CalibratedLanes:
    """A folder of :func:`write_tiny` whose lanes were calibrated, tables in its ``runs``. Not to be changed."""

    folder: Path
    said: list[str]
    ticks: list[list[int]]
    same_again: bool
    """Whether a second calibration reused what the first had given."""


@pytest.fixture(scope="session")
def calibrated_lanes(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path], Path]) -> CalibratedLanes:
    """The lanes of :func:`write_tiny`, measured for real, and what was told meanwhile.

    Once in a run of the tests: of several processes that run them one measures, and the others take its tables.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder, told = place / "calibrated-once", place / "calibrated-once.json"
    with (place / "calibrated-once.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            folder.mkdir(exist_ok=True)
            told.write_text(json.dumps(_measure(write_tiny(folder))))
    return CalibratedLanes(folder, **json.loads(told.read_text()))


def _measure(folder: Path) -> dict[str, Any]:
    said: list[str] = []
    ticks: list[tuple[int, int]] = []
    document, runs = parse_file(folder / "tiny.toml"), folder / "runs"
    made = calibrate(document, folder, runs, report=said.append, tick=lambda *done: ticks.append(done))
    assert not made.reused
    again = calibrate(document, folder, runs, report=said.append)
    return {"said": said, "ticks": ticks, "same_again": again == replace(made, reused=True)}


@pytest.fixture
def calibrated(calibrated_lanes: CalibratedLanes, tmp_path: Path) -> Path:
    """A folder of the test's own of :func:`write_tiny`, with the tables of its lanes in its ``runs``."""
    return shutil.copytree(calibrated_lanes.folder, tmp_path / "calibrated")


WATCH = """
import os, sys, traceback

def hook(event, arguments):
    if event == "pickle.find_class":
        with open(os.environ["UNPICKLED"], "a") as file:
            file.write(f"{sys.argv[:2]} {arguments}: {traceback.format_stack(limit=6)}\\n")

sys.addaudithook(hook)
with open(os.environ["WATCHED"], "a") as file:
    file.write(f"{os.getpid()}\\n")
"""


class Watched:
    """Commands whose processes, drivers and workers alike, tell what they unpickle, by Python's own audit event."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(WATCH)
        self.heard, self.seen = folder / "unpickled.txt", folder / "watched.txt"
        told = {"PYTHONPATH": str(folder), "UNPICKLED": str(self.heard), "WATCHED": str(self.seen), "COLUMNS": "200"}
        self.environment = {**os.environ, **told}

    def run(self, *words: str) -> str:
        """Standard output of a command that succeeds."""
        command = [sys.executable, "-m", "steelyard.runner.cli", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def require_nothing(self, processes: int) -> None:
        """Nothing was unpickled in at least so many processes, and it would have been heard."""
        assert len(set(self.seen.read_text().split())) >= processes
        assert not self.heard.exists(), self.heard.read_text()
        probe = "import pickle, collections; pickle.loads(pickle.dumps(collections.OrderedDict()))"
        subprocess.run([sys.executable, "-c", probe], env=self.environment, check=True)
        assert self.heard.exists()
        self.heard.unlink()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Runs commands, and hears what they unpickle."""
    return Watched(tmp_path_factory.mktemp("watch") / "watch")
