"""The search: repeatable, resumable after SIGKILL, never worse than a default, careful with other people's files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import DEFAULTS, make_policy, policy_from_text
from steelyard.policies.search import SearchResult, TrialRow, distinct_plans, search, write_best
from steelyard.policies.search_goal import Goal
from steelyard.policies.workers import Evaluator, _answer
from steelyard.results.errors import InputError
from steelyard.sim.engine import objective_value
from steelyard.sim.plan import Infeasible, PlanError
from steelyard.sim.spec import Scenario, scenario_from

Document = dict[str, Any]
TRIALS = 26
"""Not a multiple of the batch: the last batch is short."""

CHILD = """
import json, sys
from steelyard.policies.search import search, write_best
from steelyard.sim.spec import scenario_from
document, storage, best, trials = sys.argv[1:]
result = search(scenario_from(json.loads(document)), trials=int(trials), storage=storage, workers=0, seed=3)
write_best(result, best)
"""


def _table(result: SearchResult) -> list[TrialRow]:
    return list(result.trials)


@pytest.fixture(scope="module")
def small(make_document: Callable[..., Document]) -> Document:
    return {**make_document(), "sampling": {"launches": 4, "steps": 4, "search_launches": 2}}


@pytest.fixture(scope="module")
def whole(small: Document, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, bytes]:
    """An uninterrupted search in memory: its result, and its best.toml."""
    result = search(scenario_from(small), trials=TRIALS, seed=3, workers=0)
    return result, write_best(result, tmp_path_factory.mktemp("whole") / "best.toml").read_bytes()


def test_defaults_come_first_and_best_is_the_best(whole: tuple[SearchResult, bytes], small: Document) -> None:
    result, _ = whole
    assert [row.policy for row in result.trials[: len(DEFAULTS)]] == list(DEFAULTS)
    for row in result.trials[: len(DEFAULTS)]:
        assert make_policy(row.policy, row.parameters) == make_policy(row.policy)
    assert result.value == max(row.value for row in result.trials if row.value is not None)
    assert [row.number for row in result.trials] == list(range(TRIALS))
    scenario = scenario_from(small)
    again = objective_value(scenario, result.policy(), seed=3, launches=scenario.sampling.search_launches)
    assert again == result.value


def test_the_sampler_tries_more_than_the_defaults(whole: tuple[SearchResult, bytes]) -> None:
    tried = {(row.policy, json.dumps(row.parameters)) for row in whole[0].trials}
    assert len(tried) == TRIALS, "a setting that was tried is not tried again"


def test_policies_without_a_range_are_tried_once_each(small: Document) -> None:
    result = search(scenario_from(small), policies=["uniform", "makespan"], trials=50, workers=0)
    tried = [(row.policy, row.parameters) for row in result.trials]
    settings = [{"leave_out": out, "overlap": overlap} for out in (False, True) for overlap in (False, True)]
    assert tried[:2] == [("uniform", {}), ("makespan", settings[-1])]
    assert sorted((each for _, each in tried[1:]), key=lambda each: list(each.values())) == settings


@pytest.mark.parametrize("place", ["memory", "journal", "sqlite"])
def test_the_table_does_not_depend_on_storage_or_workers(
    place: str, whole: tuple[SearchResult, bytes], small: Document, tmp_path: Path
) -> None:
    storage = {"memory": None, "journal": tmp_path / "j.log", "sqlite": f"sqlite:///{tmp_path / 's.db'}"}[place]
    result = search(scenario_from(small), trials=TRIALS, seed=3, workers=0, storage=storage)
    assert _table(result) == _table(whole[0])
    assert write_best(result, tmp_path / "best.toml").read_bytes() == whole[1]


def test_workers_give_what_this_process_gives(small: Document) -> None:
    """Workers from the first trial on; enough trials that they get some."""
    scenario = scenario_from(small)
    trials = [("throughput", {"gamma": number / 20}) for number in range(40)]
    goal = Goal.of(scenario, 3)
    expected = [goal.evaluate(*trial) for trial in trials]
    with Evaluator(goal, workers=2, start_s=0.0) as evaluator:
        evaluator.submit(Goal.evaluate, *trials[0])
        assert evaluator.outcomes() == expected[:1]
        _wait_until_ready(evaluator)
        for trial in trials:
            evaluator.submit(Goal.evaluate, *trial)
        assert evaluator._waiting != evaluator._batch  # some are with the workers
        assert any(worker.holds for worker in evaluator._workers)
        assert evaluator.outcomes() == expected


def test_a_killed_worker_is_named_and_leaves_nothing_behind(small: Document) -> None:
    scenario = scenario_from(small)
    with Evaluator(Goal.of(scenario, 3), workers=1, start_s=0.0) as evaluator:
        evaluator.submit(Goal.evaluate, "uniform", {})
        evaluator.outcomes()
        _wait_until_ready(evaluator)
        process = evaluator._workers[0].process
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        process.join()
        with pytest.raises(RuntimeError, match="worker of the search ended"):
            evaluator._exchange()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


ORPHAN = """
import json, sys, time
from steelyard.policies.search_goal import Goal
from steelyard.policies.workers import Evaluator
from steelyard.sim.spec import scenario_from
if __name__ == "__main__":
    with Evaluator(Goal.of(scenario_from(json.loads(sys.argv[1])), 3), workers=1, start_s=0.0) as evaluator:
        evaluator.submit(Goal.evaluate, "uniform", {})
        evaluator.outcomes()
        print(evaluator._workers[0].process.pid, flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the worker in /proc")
def test_no_worker_outlives_a_search_that_was_killed(small: Document) -> None:
    command = [sys.executable, "-c", ORPHAN, json.dumps(small)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert _lives(worker)
        process.kill()
    while _lives(worker):  # for as long as its start takes; a worker that stays hangs the test
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_invalid_plan_is_the_policys_bug_and_ends_the_search(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"wrong_policy_{os.getpid()}"
    (tmp_path / f"{module}.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Wrong:\n"
        "    name = 'wrong'\n"
        "    def allocate(self, view):\n"
        "        return view.plan([view.global_batch - 1, 0])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    with pytest.raises(PlanError, match="31 samples, the global batch is 32"):
        search(scenario, policies=[f"{module}:Wrong"], workers=0)
    told = _answer(Goal.of(scenario, 1), Goal.evaluate, (f"{module}:Wrong", {}))
    assert isinstance(told, PlanError), "a worker hands the error to its parent"


def _wait_until_ready(evaluator: Evaluator) -> None:
    while not all(worker.ready for worker in evaluator._workers):
        time.sleep(0.01)
        evaluator._exchange()


@pytest.mark.parametrize("attempt", range(2))
def test_a_killed_search_resumes_as_if_nothing_had_been(
    attempt: int, whole: tuple[SearchResult, bytes], small: Document, tmp_path: Path
) -> None:
    """SIGKILL at moments spread over the run (by the size of the journal), then a resume in this process."""
    storage, best = tmp_path / "search.log", tmp_path / "best.toml"
    moments = random.Random(attempt)
    command = [sys.executable, "-c", CHILD, json.dumps(small), str(storage), str(best), str(TRIALS)]
    kills = 0
    for size in sorted(moments.randrange(1, 30_000) for _ in range(2)):
        kills += _kill_at(command, storage, size)
    assert kills > 0, "the journal is expected to grow past the first moment"
    result = search(scenario_from(small), trials=TRIALS, seed=3, workers=0, storage=storage)
    assert _table(result) == _table(whole[0])
    assert write_best(result, best).read_bytes() == whole[1]


def _kill_at(command: list[str], storage: Path, size: int) -> int:
    """Run a search and kill it once its journal is so long; 1 if it was killed before it ended."""
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            if storage.exists() and storage.stat().st_size >= size:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        return int(process.wait() == -signal.SIGKILL)


def test_a_journal_cut_anywhere_resumes_to_the_same_table(
    whole: tuple[SearchResult, bytes], small: Document, tmp_path: Path
) -> None:
    """A kill leaves a prefix of the journal: at all kinds of places, torn lines and a stale lock included."""
    scenario = scenario_from(small)
    full = tmp_path / "full.log"
    search(scenario, trials=TRIALS, seed=3, workers=0, storage=full)
    content = full.read_bytes()
    starts = [place + 1 for place, byte in enumerate(content) if byte == 10]
    draws = random.Random(0)
    cuts = [0, 1, 20, starts[0], starts[1] + 3, *(draws.randrange(len(content)) for _ in range(12))]
    for number, cut in enumerate(cuts):
        storage = tmp_path / f"cut{number}.log"
        storage.write_bytes(content[:cut])
        Path(f"{storage}.lock").touch()
        result = search(scenario, trials=TRIALS, seed=3, workers=0, storage=storage)
        assert _table(result) == _table(whole[0]), f"cut at byte {cut}"


def test_a_finished_search_goes_on_with_more_trials(
    whole: tuple[SearchResult, bytes], small: Document, tmp_path: Path
) -> None:
    scenario, storage = scenario_from(small), tmp_path / "s.log"
    search(scenario, trials=16, seed=3, workers=0, storage=storage)
    more = search(scenario, trials=TRIALS, seed=3, workers=0, storage=storage)
    assert _table(more) == _table(whole[0])
    nothing_left = search(scenario, trials=TRIALS, seed=3, workers=0, storage=storage)
    assert _table(nothing_left) == _table(whole[0])
    assert nothing_left.trials_per_s == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"policies": ["uniform", "attention"]}, "policies"),
        ({"sampler": "random"}, "sampler"),
        ({"batch": 4}, "batch"),
    ],
)
def test_a_storage_of_another_search_is_refused(
    change: dict[str, Any], named: str, small: Document, tmp_path: Path
) -> None:
    storage = tmp_path / "s.log"
    arguments: dict[str, Any] = {"trials": 8, "seed": 3, "workers": 0, "storage": storage}
    search(scenario_from(small), **arguments)
    before = storage.read_bytes()
    with pytest.raises(InputError, match=named):
        search(scenario_from(small), **{**arguments, **change})
    other = scenario_from({**small, "sampling": {"launches": 4, "steps": 5}})
    with pytest.raises(InputError, match="scenario_sha256"):
        search(other, **arguments)
    assert storage.read_bytes() == before
    search(other, **arguments, study="another")


def test_best_toml_is_a_policy(whole: tuple[SearchResult, bytes], tmp_path: Path) -> None:
    result, content = whole
    (tmp_path / "best.toml").write_bytes(content)
    assert policy_from_text(str(tmp_path / "best.toml")) == result.policy()
    document = tomllib.loads(content.decode())
    assert document["search"]["value"] == result.value
    assert document["search"]["seed"] == 3
    assert document["search"]["trials"] == TRIALS


def test_distinct_plans_are_best_first_and_each_once(whole: tuple[SearchResult, bytes], small: Document) -> None:
    scenario, result = scenario_from(small), whole[0]
    found = distinct_plans(scenario, result, 4)
    assert len({plan.sha256 for _, plan in found}) == len(found) > 1
    for policy, plan in found:
        plan.check(scenario)
        assert policy.allocate.__self__ == policy  # type: ignore[attr-defined]  # a bound method of the policy itself
    values = [objective_value(scenario, policy, seed=3, launches=2) for policy, _ in found]
    assert values == sorted(values, reverse=True)
    assert values[0] == result.value
    rest = distinct_plans(scenario, result, 4, exclude=[found[0][1]])
    assert rest[0][1].sha256 == found[1][1].sha256


def test_infeasible_trials_keep_their_reason(small: Document) -> None:
    """Without the price of the slow device only a plan that leaves it out has a cost."""
    document = json.loads(json.dumps(small)) | {"objective": {"metric": "cost"}, "seed": 0}
    del document["cluster"]["nodes"][0]["devices"][1]["price_usd_per_hour"]
    result = search(scenario_from(document), trials=8, workers=0)
    failed = [row for row in result.trials if row.state == "infeasible"]
    assert failed
    assert all(row.value is None and "price_usd_per_hour" in row.reason for row in failed)
    assert result.name == "linear-cost"


def test_no_value_anywhere_is_an_error_and_writes_nothing(small: Document, tmp_path: Path) -> None:
    document = json.loads(json.dumps(small))
    document["workload"]["global_batch"] = 10**6
    with pytest.raises(Infeasible, match="fit nowhere"):
        search(scenario_from(document), trials=8, workers=0, storage=tmp_path / "s.log")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"trials": 3}, "trials"),
        ({"batch": 0}, "batch"),
        ({"workers": -1}, "workers"),
        ({"sampler": "gut feeling"}, "sampler"),
        ({"policies": []}, "policies"),
        ({"policies": ["unifrom"]}, "did you mean uniform"),
        ({"storage": "nosuchdb://there"}, "storage"),
        ({"storage": "oracle+cx_oracle://user:secret@there/db"}, "pip install"),
        ({"storage": "/"}, "folder"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], named: str, scenario: Scenario) -> None:
    with pytest.raises(InputError, match=named) as caught:
        search(scenario, **arguments)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_somebody_else_is_left_alone(scenario: Scenario, tmp_path: Path) -> None:
    for content in (b"dear diary\nno newline at the end", b'{"a": 1}\n{"b"', b"[1, 2]\n", b"text"):
        storage = tmp_path / "notes.txt"
        storage.write_bytes(content)
        with pytest.raises(InputError, match="not a journal"):
            search(scenario, trials=6, storage=storage)
        assert storage.read_bytes() == content


def test_a_damaged_journal_is_an_input_error(scenario: Scenario, tmp_path: Path) -> None:
    storage = tmp_path / "s.log"
    search(scenario, trials=6, workers=0, storage=storage, seed=1)
    lines = storage.read_bytes().splitlines(keepends=True)
    storage.write_bytes(b"".join([*lines[:5], b"{broken\n", *lines[6:]]))
    with pytest.raises(InputError, match="damaged"):
        search(scenario, trials=6, workers=0, storage=storage, seed=1)


@pytest.mark.skipif(sys.platform == "win32", reason="the journal is held by flock")
def test_two_searches_cannot_share_a_journal(scenario: Scenario, tmp_path: Path) -> None:
    import fcntl

    storage = tmp_path / "s.log"
    search(scenario, trials=6, workers=0, storage=storage, seed=1)
    with storage.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="in use"):
            search(scenario, trials=6, workers=0, storage=storage, seed=1)


def test_progress_is_told_and_the_callers_log_level_kept(scenario: Scenario) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    told: list[tuple[int, int]] = []
    search(scenario, trials=10, workers=0, progress=lambda done, of: told.append((done, of)), batch=4)
    assert told == [(4, 10), (8, 10), (10, 10)]
    assert optuna.logging.get_verbosity() == before
