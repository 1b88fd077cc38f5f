"""Nothing is unpickled: not by what the code says, and not by what a training and its workers do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from steelyard.sim.spec import Scenario

from .conftest import Watched

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("results", "sim", "runner")
"""``policies`` hands its own bytes to its own processes when it searches, and reads none from anywhere else."""
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""What reads code out of data."""
LOADERS = {("torch", "load"), ("torch", "save"), ("np", "load"), ("pd", "read_pickle"), ("numpy", "load")}


def offences(source: str) -> Iterator[str]:
    """What a module does that could run code out of a file or a message."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"imports from {node.module}"
        elif isinstance(node, ast.Attribute) and node.attr.endswith(("_object", "_object_list")):
            yield f"pickling collective {node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield from _loader(node, node.func)


def _loader(call: ast.Call, function: ast.Attribute) -> Iterator[str]:
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    if (owner, function.attr) in LOADERS:
        safe = {keyword.arg for keyword in call.keywords if isinstance(keyword.value, ast.Constant)}
        refused = ast.unparse(call)
        if not ("allow_pickle" in safe and "allow_pickle=False" in refused):
            yield f"calls {owner}.{function.attr} and may unpickle"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import torch.distributed as dist\ndist.all_gather_object(a, b)",
        "dist.broadcast_object_list(a)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_check_finds_what_it_looks_for(source: str) -> None:
    assert list(offences(source))


def test_no_module_reads_code_out_of_data() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {each}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for each in offences(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.slow
def test_a_training_and_its_workers_unpickle_nothing(tiny_scenario: Scenario, tmp_path: Path, watched: Watched) -> None:
    """Resumed ones too."""
    training = tiny_scenario.training.model_copy(update={"steps": 6, "checkpoint_every_steps": 3})
    file = tmp_path / "scenario.json"
    file.write_text(tiny_scenario.model_copy(update={"training": training}).model_dump_json(exclude_none=True))
    runs = ["--runs", str(tmp_path / "runs")]
    watched.run("train", *runs, str(file), "--policy", "uniform")
    (folder,) = (tmp_path / "runs").glob("train-*")
    watched.run("train", *runs, "--resume", str(folder))
    watched.require_nothing(processes=6)  # two drivers, two workers each
