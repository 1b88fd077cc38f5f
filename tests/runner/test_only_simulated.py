"""What is simulated and replayed only is refused where lanes train, before anything is calibrated or measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import make_policy
from steelyard.results.errors import InputError
from steelyard.runner.cli import run
from steelyard.runner.demo import demo
from steelyard.runner.train import train
from steelyard.sim.disturbances import Disturbance, Rebalance
from steelyard.sim.spec import Scenario

EVENTS = [Disturbance(kind="slowdown", device="full", from_step=3, factor=2.0)]
SET = {
    "disturbances": 'disturbances=[{kind="slowdown", device="full", from_step=3, factor=2.0}]',
    "rebalance": "rebalance={every_steps=5}",
}


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("disturbances", {"disturbances": EVENTS}),
        ("disturbances", {"disturbances": EVENTS, "rebalance": Rebalance()}),
    ],
)
def test_train_refuses(tiny_scenario: Scenario, tmp_path: Path, path: str, changes: dict[str, Any]) -> None:
    scenario = tiny_scenario.model_copy(update=changes)
    with pytest.raises(InputError, match="simulated and replayed only") as caught:
        train(scenario, make_policy("uniform"), tmp_path)
    assert caught.value.path == path
    assert caught.value.mend
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("verb", "path"), [("train", "disturbances"), *(("chaos", path) for path in SET)])
def test_the_command_refuses_before_it_calibrates(
    verb: str, path: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tiny_folder / "runs"
    assert run([verb, str(tiny_folder / "tiny.toml"), "--runs", str(runs), "--set", SET[path]]) == 2
    assert capsys.readouterr().err == (
        f"steelyard: {path}: is simulated and replayed only (take it out, or use `steelyard simulate`)\n"
    )
    assert not runs.exists()


def test_the_demo_refuses_before_it_calibrates(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rebalance: is simulated and replayed only"):
        demo(tmp_path, settings=[SET["rebalance"]], bar=lambda title: pytest.fail(f"{title} began"))
    assert not list(tmp_path.iterdir())
