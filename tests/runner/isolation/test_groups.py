"""Control groups: what is written to them, where they may be made, and that real ones hold and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.runner.isolation.capabilities import this_host
from steelyard.runner.isolation.groups import (
    LEAST_QUOTA_US,
    Controller,
    Group,
    Place,
    candidates,
    find_place,
    make_group,
    sweep,
    throttled_periods_s,
    throttled_s,
)
from steelyard.runner.isolation.owner import Owner
from steelyard.runner.worker.quota import Quota

Need = Callable[[str], None]
MIB = 2**20
SPIN = "while True: pass"
FILL = "import sys; held = [bytearray(2**20) for _ in range(10**6)]"


def place_of(controller: Controller) -> Place:
    return next(place for place in this_host().places if place.controller == controller)


def start(group: Group, program: str) -> subprocess.Popen[bytes]:
    """A process that is in the group before it does anything."""
    enter = f"import os; open({str(group.procs)!r}, 'w').write(str(os.getpid()))\n"
    return subprocess.Popen([sys.executable, "-c", enter + program])


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


# ---- what is written ----


@given(st.floats(0.01, 64), st.integers(1_000, 1_000_000))
def test_a_quota_is_the_share_of_its_period_and_never_too_short_for_the_kernel(cores: float, period: int) -> None:
    first = Place("cpu", 1, Path("/")).quota(cores, period)
    quota, used = int(first["cpu.cfs_quota_us"]), int(first["cpu.cfs_period_us"])
    assert used >= period
    assert quota >= LEAST_QUOTA_US - 1
    assert quota / used == pytest.approx(cores, abs=0.5 / used * (1 + 1e-9))  # half a microsecond, to rounding
    assert Place("cpu", 2, Path("/")).quota(cores, period) == {"cpu.max": f"{quota} {used}"}


def test_a_limit_counts_what_is_swapped() -> None:
    assert Place("memory", 1, Path("/")).limit(MIB)["memory.memsw.limit_in_bytes"] == str(MIB)
    assert Place("memory", 2, Path("/")).limit(MIB)["memory.swap.max"] == "0"


@given(st.integers(0, 10**12))
def test_throttled_time_is_read_from_either_version(microseconds: int) -> None:
    first = f"nr_periods 3\nnr_throttled 2\nthrottled_time {microseconds * 1000}\n"
    second = f"usage_usec 9\nnr_throttled 2\nthrottled_usec {microseconds}\nnr_bursts 0\n"
    assert throttled_s(first) == throttled_s(second) == microseconds / 1e6
    assert throttled_s("usage_usec 9\n") == 0.0


# ---- where ----


def fake_proc(folder: Path, groups: str, mounts: str) -> Path:
    (folder / "cgroup").write_text(groups)
    (folder / "mountinfo").write_text(mounts)
    return folder


def test_a_host_without_control_groups_says_so(tmp_path: Path) -> None:
    place, reason = find_place("cpu", tmp_path)
    assert place is None
    assert "no control groups with the cpu controller" in reason


def test_version_2_is_tried_where_the_controller_is_handed_down(tmp_path: Path) -> None:
    """A user's own slice hands memory down to its groups, and processor time does not reach it."""
    mount = tmp_path / "mount"
    slice_ = mount / "user.slice" / "app.slice"
    (slice_ / "shell.scope").mkdir(parents=True)
    (slice_ / "cgroup.subtree_control").write_text("memory pids\n")
    (slice_ / "shell.scope" / "cgroup.subtree_control").write_text("\n")
    line = f"41 31 0:38 / {mount} rw,relatime - cgroup2 cgroup2 rw\n"
    proc = fake_proc(tmp_path, "0::/user.slice/app.slice/shell.scope\n", line)
    assert list(candidates("memory", proc)) == [Place("memory", 2, slice_)]
    assert list(candidates("cpu", proc)) == []


def test_version_1_is_tried_at_its_top_and_in_the_own_group(tmp_path: Path) -> None:
    """In a container the hierarchy is mounted from the container's group down."""
    lines = (
        f"33 31 0:30 /box {tmp_path} rw - cgroup cgroup rw,cpu,cpuacct\n34 31 0:31 / /elsewhere rw - tmpfs tmpfs rw\n"
    )
    proc = fake_proc(tmp_path, "3:cpu,cpuacct:/box/inner\n2:memory:/\n", lines)
    assert list(candidates("cpu", proc)) == [Place("cpu", 1, tmp_path), Place("cpu", 1, tmp_path / "inner")]
    assert list(candidates("memory", proc)) == []


# ---- real groups ----


@pytest.mark.usefixtures("as_before")
def test_a_quota_throttles_and_tells_for_how_long(need: Need) -> None:
    need("cpu_quota")
    place = place_of("cpu")
    group = make_group(place, Owner.here().name(), place.quota(0.2, 5_000))
    with start(group, SPIN) as process:
        wait_for(lambda: throttled_s((group.path / "cpu.stat").read_text()) > 0.05)
        group.remove()
        assert process.wait(10) == -signal.SIGKILL, "what is left in a group goes with it"
    assert not group.path.exists()
    group.remove()  # which is no error


@pytest.mark.usefixtures("as_before")
def test_memory_beyond_the_limit_is_counted(need: Need) -> None:
    need("memory_limit")
    place = place_of("memory")
    group = make_group(place, Owner.here().name(), place.limit(64 * MIB))
    try:
        assert group.oom_kills() == 0
        with start(group, FILL) as process:
            assert process.wait(60) == -signal.SIGKILL
        assert group.oom_kills() == 1
    finally:
        group.remove()


@pytest.mark.usefixtures("as_before")
def test_a_group_that_cannot_have_its_limit_is_not_left(need: Need) -> None:
    need("cpu_quota")
    name = Owner.here().name()
    with pytest.raises(OSError, match="nvalid"):
        make_group(place_of("cpu"), name, {next(iter(place_of("cpu").quota(1, 10_000))): "nonsense"})
    assert not (place_of("cpu").parent / name).exists()


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("controller", ["cpu", "memory"])
def test_sweep_takes_what_a_dead_maker_left_with_its_processes(need: Need, controller: Controller) -> None:
    need("cpu_quota" if controller == "cpu" else "memory_limit")
    place = place_of(controller)
    here = Owner.here()
    dead = make_group(place, Owner(here.namespace, here.pid, here.started + 1).name(), {})
    foreign = make_group(place, Owner(here.namespace + 1, here.pid, here.started + 1).name(), {})
    own = make_group(place, here.name(), {})
    with start(dead, SPIN) as process:
        wait_for(lambda: process.pid in dead.members())
        assert dead.path in sweep([place])
        assert process.wait(10) == -signal.SIGKILL
    assert not dead.path.exists()
    assert foreign.path.exists()
    assert own.path.exists()
    foreign.remove()
    own.remove()


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_warden_removes_groups_when_the_driver_is_killed(need: Need, end: signal.Signals) -> None:
    need("cpu_quota")
    program = (
        "import sys, time\n"
        "from steelyard.runner.isolation.capabilities import this_host\n"
        "from steelyard.runner.isolation.groups import make_group\n"
        "from steelyard.runner.isolation.owner import Owner\n"
        "from steelyard.runner.isolation.warden import warden\n"
        "groups = [make_group(place, Owner.here().name(), {}) for place in this_host().places]\n"
        "with warden(groups):\n"
        "    print(*[group.path for group in groups], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        paths = [Path(word) for word in driver.stdout.readline().split()]
        children = psutil.Process(driver.pid).children()
        assert all(path.exists() for path in paths)
        with start(Group(place_of("cpu"), paths[0]), SPIN) as worker:
            wait_for(lambda: str(worker.pid) in (paths[0] / "cgroup.procs").read_text().split())
            os.kill(driver.pid, end)
            assert worker.wait(30) == -signal.SIGKILL
    wait_for(lambda: not any(path.exists() for path in paths))
    assert not psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.usefixtures("as_before")
def test_a_worker_counts_what_its_quota_took_away(need: Need) -> None:
    """Processor time and throttled time together are no more than the time that has passed."""
    need("cpu_quota")
    place = place_of("cpu")
    group = make_group(place, Owner.here().name(), place.quota(0.25, 5_000))
    program = (
        "import sys, time\n"
        "from steelyard.runner.worker.quota import Quota\n"
        f"quota = Quota(cpu_stat={str(group.path / 'cpu.stat')!r}, cores=1)\n"
        "start, own, lost = time.monotonic(), time.process_time(), quota.throttled_s()\n"
        "while quota.throttled_s() - lost < 0.3: pass\n"
        "own, wall = time.process_time() - own, time.monotonic() - start\n"
        "sys.exit(not own + 0.3 <= wall + 0.02)\n"
    )
    try:
        with start(group, program) as process:
            assert process.wait(60) == 0
    finally:
        group.remove()


@pytest.mark.usefixtures("as_before")
def test_periods_tell_who_is_starved_while_the_throttle_lasts(need: Need) -> None:
    """A thousandth of a core: who wants more is throttled in nearly every period, who sleeps in hardly any."""
    need("cpu_quota")
    place = place_of("cpu")
    for program, starved in ((SPIN, True), ("import time; time.sleep(60)", False)):
        group = make_group(place, Owner.here().name(), {})
        try:
            with start(group, program) as process:
                wait_for(lambda process=process, group=group: process.pid in group.members())
                time.sleep(0.5)  # until the interpreter has started
                group.set(place.quota(1e-3, 1_000_000))
                time.sleep(2.0)
                before, _ = throttled_periods_s(group.path)
                begin = time.monotonic()
                time.sleep(4.0)
                _, seconds = throttled_periods_s(group.path, before)
                assert (seconds > 0.5 * (time.monotonic() - begin)) is starved
                process.kill()
        finally:
            group.remove()


def test_a_worker_without_a_quota_loses_nothing() -> None:
    assert Quota(cpu_stat="", cores=1).throttled_s() == 0.0
