"""Who is at fault: real processes that speak the workers' protocol, and each way in which a group can get stuck."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from steelyard.runner.devices import NamedLane
from steelyard.runner.symptoms import is_stopped
from steelyard.runner.watch import Fault, FaultError, Worker, watch
from steelyard.runner.worker.signs import state_file

READY = "echo done 0; "
FOREVER = 'touch "$SETTLED"; exec sleep 600'
STARVED = (
    'touch "$SETTLED"; count=0; while :; do count=$((count + 1)); echo "nr_throttled $count" > "$GROUP/new"; '
    'mv "$GROUP/new" "$GROUP/cpu.stat"; sleep 0.1; done'
)
"""A group's files as the kernel has them while a quota of 0.1 s periods lets no process of the group run."""
RESET = "echo 'RuntimeError: Connection reset by peer' >&2; exit 1"

Watched = Callable[..., Fault]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Starts a shell for each script, watches them as a group of one task, and gives back the fault.

    The watch begins when all have said what they have to say, however long that takes on a busy host.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def run(*scripts: str, timeout_s: float = 1.0) -> Fault:
        for rank, script in enumerate(scripts):
            with log_of(tmp_path, rank).open("wb") as output:
                names = {
                    "SETTLED": str(tmp_path / f"settled-{rank}"),
                    "STATE": str(state_file(log_of(tmp_path, rank))),
                    "GROUP": str(group_of(tmp_path, rank)),
                }
                told = {**os.environ, **names}
                processes.append(
                    subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=output, env=told)
                )
        for rank, process in enumerate(processes):
            while (
                not (tmp_path / f"settled-{rank}").exists() and process.poll() is None and not is_stopped(process.pid)
            ):
                time.sleep(0.01)
        workers = [
            Worker(NamedLane(name="abc"[rank]), rank, process, log_of(tmp_path, rank), quota=group_of(tmp_path, rank))
            for rank, process in enumerate(processes)
        ]
        with pytest.raises(FaultError) as failed:
            watch(workers, 1, timeout_s)
        assert str(failed.value) == failed.value.fault.what
        return failed.value.fault

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def group_of(folder: Path, rank: int) -> Path:
    """The folder of a lane's quota; one that was never throttled, until its script says otherwise."""
    group = folder / f"group-{rank}"
    if not group.exists():
        group.mkdir()
        (group / "cpu.stat").write_text("nr_periods 7\nnr_throttled 0\nthrottled_time 0\n")
        (group / "cpu.cfs_period_us").write_text("100000\n")
    return group


def log_of(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"


def test_the_one_that_is_behind_is_named_though_its_peers_are_as_silent(watched: Watched) -> None:
    waits = f"{READY} echo alive; echo waits; {FOREVER}"
    fault = watched(waits, f"{READY} echo alive; {FOREVER}", waits)
    assert (fault.kind, fault.lane) == ("hung", "b")
    assert "worker 'b' (rank 1) hung: silent for 1 s" in fault.what
    assert fault.silent_s >= 1.0


def test_nobody_is_named_where_nobody_is_behind(watched: Watched) -> None:
    fault = watched(*[f"{READY} echo waits; {FOREVER}"] * 2)
    assert (fault.kind, fault.lane) == ("hung", None)
    assert "'a', 'b' hung together" in fault.what


WAITING, WORKING = "printf '\\002' > $STATE; ", "printf '\\001' > $STATE; "


def test_the_one_that_does_not_wait_is_named_however_much_it_has_said(watched: Watched) -> None:
    """As in a pipeline: the last stage waits for the first, which has had more to say."""
    fault = watched(f"{READY} echo waits; echo waits; {WORKING} {FOREVER}", f"{READY} {WAITING} {FOREVER}")
    assert (fault.kind, fault.lane) == ("hung", "a")


def test_nobody_is_named_where_all_wait_though_one_has_said_less(watched: Watched) -> None:
    fault = watched(f"{READY} echo waits; {WAITING} {FOREVER}", f"{READY} {WAITING} {FOREVER}")
    assert (fault.kind, fault.lane) == ("hung", None)
    assert "'a', 'b' hung together" in fault.what


def test_of_those_that_all_wait_the_one_that_its_quota_starves_is_named(watched: Watched) -> None:
    """It is in a collective like all others, and cannot do its part of it."""
    waits = f"{READY} {WAITING} {FOREVER}"
    fault = watched(waits, f"{READY} {WAITING} {STARVED}", waits, timeout_s=2.0)
    assert (fault.kind, fault.lane) == ("hung", "b")


def test_a_lane_that_its_quota_holds_back_at_work_is_not_starved(watched: Watched) -> None:
    """Two do not wait; that one of them uses up its quota says nothing of who is at fault."""
    fault = watched(f"{READY} {WORKING} {FOREVER}", f"{READY} {WORKING} {STARVED}", timeout_s=2.0)
    assert (fault.kind, fault.lane) == ("hung", None)


def test_lines_are_counted_where_one_shows_no_state(watched: Watched) -> None:
    """A lane that has not begun, or one on another machine of which nothing is told yet."""
    fault = watched(f"{READY} echo waits; {WORKING} {FOREVER}", f"{READY} {FOREVER}")
    assert (fault.kind, fault.lane) == ("hung", "b")


def test_a_stopped_worker_is_named_before_those_that_are_behind(watched: Watched) -> None:
    """It is ahead by signs, and it is the one that a signal stopped."""
    fault = watched(f"{READY} {FOREVER}", f"{READY} echo alive; echo waits; kill -STOP $$", timeout_s=2.0)
    assert (fault.kind, fault.lane) == ("stopped", "b")


def test_a_killed_worker_is_the_cause_and_its_peers_complaint_is_not(watched: Watched) -> None:
    fault = watched(f"{READY} {RESET}", f"{READY} kill -KILL $$", timeout_s=30.0)
    assert (fault.kind, fault.lane) == ("killed", "b")
    assert "was killed by SIGKILL after 0 tasks" in fault.what


def test_a_worker_that_errs_by_itself_is_named_with_its_last_line(watched: Watched) -> None:
    fault = watched(f"{READY} {RESET}", f"{READY} echo 'KeyError: 7' >&2; exit 1", timeout_s=30.0)
    assert (fault.kind, fault.lane) == ("erred", "b")
    assert fault.what.endswith("ended with code 1 after 0 tasks: KeyError: 7")


def test_a_disk_that_is_full_is_named_with_the_systems_words(watched: Watched) -> None:
    fault = watched(f"{READY} {FOREVER}", f"{READY} echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
    assert (fault.kind, fault.lane) == ("erred", "b")
    assert "No space left on device" in fault.what


def test_torchs_words_for_a_lack_of_memory_are_understood(watched: Watched) -> None:
    words = "RuntimeError: [enforce fail] DefaultCPUAllocator: cannot allocate memory: can't allocate memory"
    fault = watched(f"{READY} {FOREVER}", f'{READY} echo "{words}" >&2; exit 1', timeout_s=30.0)
    assert (fault.kind, fault.lane) == ("memory", "b")
    assert "it exceeded its memory" in fault.what


def test_where_all_blame_their_peers_and_nobody_died_before_it_was_the_link(watched: Watched) -> None:
    fault = watched(f"{READY} {RESET}", f"{READY} {RESET}", timeout_s=30.0)
    assert (fault.kind, fault.lane) == ("link", None)
    assert "link between 'a' and 'b'" in fault.what


def test_a_peer_that_gave_up_waiting_points_at_the_one_that_still_runs(watched: Watched) -> None:
    fault = watched(f"{READY} {RESET}", f"{READY} {FOREVER}", timeout_s=30.0)
    assert (fault.kind, fault.lane) == ("hung", "b")
    assert "its peers waited" in fault.what


def test_a_worker_that_ends_well_with_its_work_undone_is_named(watched: Watched) -> None:
    fault = watched(f"{READY} echo done 1", READY, timeout_s=30.0)
    assert (fault.kind, fault.lane) == ("ended", "b")
    assert "after 0 of 1 tasks" in fault.what


def test_a_driver_that_thinks_for_long_takes_nobody_for_silent(tmp_path: Path) -> None:
    """A policy is asked while the workers wait for its answer: the driver's own time is not theirs."""
    answer, log = tmp_path / "answer", tmp_path / "rank-0.log"
    script = f"{READY} echo asked; until test -e {answer}; do sleep 0.1; done; echo done 1"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)

    def think(name: str, line: str) -> None:
        if line == "asked":
            time.sleep(11.0)
            answer.touch()

    worker = Worker(NamedLane(name="a"), 0, process, log)
    try:
        watch([worker], 1, 10.0, listen=think)
    finally:
        process.kill()
        process.communicate()
    assert worker.done == 1


class Fading(Worker):
    """Its process ends just after it was seen to run."""

    @property
    def running(self) -> bool:
        found = super().running
        self.process.kill()
        self.process.wait()
        return found


def test_the_last_one_that_ran_is_named_though_it_ends_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without looks at its state in between, it is first seen when it has been silent for too long."""
    monkeypatch.setattr("steelyard.runner.watch.LOOKED_AT_S", float("inf"))
    process = subprocess.Popen(["sh", "-c", f"{READY} exec sleep 600"], stdout=subprocess.PIPE)
    try:
        with pytest.raises(FaultError) as failed:
            watch([Fading(NamedLane(name="a"), 0, process, log_of(tmp_path, 0), done=0)], 1, 0.5)
    finally:
        process.kill()
        process.communicate()
    assert (failed.value.fault.kind, failed.value.fault.lane) == ("hung", "a")
