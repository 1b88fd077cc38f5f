"""Groups: every device is told exactly once, equal ones together, and a table stays short whatever the cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.policies import make_policy
from steelyard.results.gate import FEW, figures
from steelyard.results.groups import MOST, groups, label, roles, sample_groups
from steelyard.results.record import LEDGER_LINES, DeviceLedger, Run
from steelyard.results.tables import binding_table, faults_table, fidelity, ledger_table
from steelyard.sim.engine import simulate
from steelyard.sim.spec import Scenario

lines = st.fixed_dictionaries(dict.fromkeys(("compute_s", "wait_s"), st.sampled_from([0.0, 1.0, 2.5])))


@pytest.fixture(scope="session")
def one(make_scenario: Callable[..., Scenario]) -> Run:
    return simulate(make_scenario(noisy=False), make_policy("uniform"))


def with_devices(run: Run, ledgers: dict[str, DeviceLedger]) -> Run:
    return dataclasses.replace(run, summary=run.summary.model_copy(update={"devices": ledgers}))


@given(st.lists(lines, min_size=1, max_size=60), st.integers(2, 30))
def test_every_device_is_in_one_group_and_time_is_kept(one: Run, drawn: list[dict[str, float]], most: int) -> None:
    ledgers = {f"gpu-{number}": DeviceLedger(**each, samples=1) for number, each in enumerate(drawn)}
    run = with_devices(one, ledgers)
    for found in (groups([run], most), roles(run), [group for group, _ in sample_groups(run)]):
        assert sorted(name for group in found for name in group.names) == sorted(ledgers)
        assert len({group.label for group in roles(run)}) == len(roles(run))
        for line in LEDGER_LINES:
            total = sum(getattr(each, line) for each in ledgers.values())
            told = sum(len(group.names) * getattr(group.ledger(run), line) for group in found)
            assert told == pytest.approx(total)
    assert len(groups([run], most)) <= most


def test_equal_devices_share_a_row_and_others_do_not(one: Run) -> None:
    busy, idle = DeviceLedger(compute_s=1.0, samples=8), DeviceLedger(idle_s=1.0)
    run = with_devices(one, {"n-0/a-0": busy, "n-0/a-1": busy, "n-1/a-0": idle, "n-1/a-1": busy})
    assert [group.label for group in groups([run])] == ["3 x n-*/a-*", "n-1/a-0"]
    rows = ledger_table([run])
    assert [(row["device"], row["samples"]) for row in rows] == [("3 x n-*/a-*", "8"), ("n-1/a-0", "0")]


def test_runs_shown_side_by_side_are_grouped_by_both(study: list[Run]) -> None:
    rows = ledger_table(study[:2])
    assert [row["device"] for row in rows] == ["left", "left", "right", "right"]


def test_many_devices_that_all_differ_end_in_others(one: Run) -> None:
    ledgers = {f"gpu-{number}": DeviceLedger(compute_s=1.0 + number, samples=number) for number in range(500)}
    found = groups([with_devices(one, ledgers)])
    assert len(found) == MOST
    assert found[-1].label == f"{500 - MOST + 1} others"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a100"], "a100"),
        (["gpu-0", "gpu-1"], "2 x gpu-*"),
        (["dgx-0/h100-7", "dgx-1/h100-7"], "2 x dgx-*/h100-7"),
        (["a-0/a100-0", "b-3/a100-1"], "2 x *-*/a100-*"),
        (["fast", "slow"], "2 x fast, ..."),
        (["fast", "slow-1"], "2 x fast, ..."),
    ],
)
def test_labels_show_what_names_have_in_common(names: list[str], expected: str) -> None:
    assert label(names) == expected


def test_a_baseline_of_a_large_cluster_holds_roles_and_not_devices(one: Run) -> None:
    few = with_devices(one, {f"gpu-{number}": DeviceLedger(compute_s=1.0, samples=1) for number in range(FEW)})
    many = with_devices(one, {f"gpu-{number}": DeviceLedger(compute_s=number, samples=1) for number in range(FEW + 1)})
    assert sum(name.startswith("devices.") and name.endswith("compute_s") for name in figures(few)) == FEW
    found = figures(many)
    assert found[f"devices.gpu-0 and {FEW} like it.compute_s"] == pytest.approx(FEW / 2)
    assert sum(name.endswith("compute_s") for name in found) == 1


def test_fidelity_is_told_with_what_was_guessed(study: list[Run]) -> None:
    prediction, measured = study[:2]
    guessed = dataclasses.replace(
        prediction, summary=prediction.summary.model_copy(update={"guessed_share": 0.25, "fidelity": "calibrated"})
    )
    assert fidelity(guessed) == "calibrated, 25 % guessed"
    assert "guessed" not in fidelity(measured)


def test_what_no_run_knows_has_no_column(one: Run) -> None:
    (row,) = binding_table([one])
    assert set(row) == {"run", "fidelity", "peak GiB", "binds", "critical path"}
    known = dataclasses.replace(one, summary=one.summary.model_copy(update={"energy_j_per_step": 12.5}))
    first, second = binding_table([one, known])
    assert (first["J/step"], second["J/step"]) == ("-", "12.5")
    assert binding_table([]) == []
    assert faults_table([one]) == []


def test_failures_are_told_as_shares_of_the_time(one: Run) -> None:
    faults = {
        "share": 0.8, "interval": [0.7, 0.9], "expected_share": 0.81, "checkpoint_interval_s": None, "wall_s": 1000.0,
        "failures_per_day": 2.0, "lost_s": {"recompute": 150.0, "restart": 50.0, "waiting_for_spot": 0.0},
    }  # fmt: skip
    failing = dataclasses.replace(one, summary=one.summary.model_copy(update={"faults": faults}))
    (row,) = faults_table([one, failing])
    assert row["goodput"] == "80.0 % (70.0-90.0)"
    assert row["lost"] == "recompute 15.0 %, restart 5.0 %"
    assert row["checkpoint every h"] == "-"
