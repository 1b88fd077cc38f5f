"""The live view: what the workers say, what is drawn of it and how often; and on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from steelyard.policies import policy_from_text
from steelyard.runner.live import EVERY_S, LaneState, Planned, View, figures, listener, live, wanted, watcher_of
from steelyard.runner.replay import replay
from steelyard.runner.worker import signs as saying
from steelyard.runner.worker.signs import Signs, resident_bytes
from steelyard.sim.spec import Scenario

TASKS = [
    {"op": "gauge"},
    {"op": "block", "index": 1, "round": 0},
    {"op": "block", "index": 0, "round": 1},
]
PLANS = [Planned("uniform", 32, 0.1), Planned("makespan", 32, 0.08)]


class Time:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def text(frame: RenderableType) -> str:
    console = Console(file=StringIO(), width=110, record=True)
    console.print(frame)
    return console.export_text()


def line(steps: int, seconds: float, busy: float, rss: int = 300 * 2**20) -> str:
    return "alive " + json.dumps({"steps": steps, "s": seconds, "busy": busy, "rss": rss})


def view(frames: list[str], clock: Callable[[], float]) -> View:
    made = View("measuring", lambda frame: frames.append(text(frame)), clock)
    made.plans(PLANS)
    made.launch(["full", "sse"], TASKS)
    return made


def test_a_frame_shows_plan_throughput_prediction_and_lanes() -> None:
    frames: list[str] = []
    seen = view(frames, Time())
    for lane in ("full", "sse"):
        seen.listen(lane, "done 1")
    seen.listen("full", line(4, 0.4, 0.3))
    seen.listen("sse", line(4, 0.4, 0.4))
    seen(7, 90)
    seen.refresh(force=True)
    frame = frames[-1]
    assert re.search(r"measuring .* launch 1, round 1, 7 of 90", frame)
    # 32 samples in 100 ms now, in 80 ms as predicted: too fast by a fifth.
    assert "makespan   now 320 samples/s (100 ms)   predicted 400 samples/s (80 ms)   error -20.0 %" in frame
    assert re.search(r"full .*█{15}░{5}\s+75 %.* 300 MiB .* 100\.0 .* 4 .* 1/3", frame)
    assert re.search(r"sse .*█{20}\s+100 %", frame)


def test_the_plan_is_that_of_the_task_that_the_slowest_lane_is_at() -> None:
    frames: list[str] = []
    seen = view(frames, Time())
    assert seen.plan is None  # a probe
    seen.listen("full", "done 2")
    assert seen.plan is None
    seen.listen("sse", "done 1 0.5")
    assert seen.plan == PLANS[1]
    seen.listen("sse", "done 2")
    assert seen.plan == PLANS[0]
    assert seen.step_s is None  # nothing of this plan yet
    seen.listen("sse", "done 3")
    seen.listen("full", "done 3")
    seen.refresh(force=True)
    assert "between plans" in frames[-1]


@given(st.lists(st.floats(0, 0.3), max_size=60))
def test_frames_keep_their_distance(pauses: list[float]) -> None:
    clock, frames = Time(), []  # type: ignore[var-annotated]  # of texts
    seen = View("measuring", frames.append, clock)
    for pause in pauses:
        clock.now += pause
        seen.listen("full", line(1, 0.1, 0.1))
    assert len(frames) <= sum(pauses) / EVERY_S + 1


@given(st.text(max_size=60))
def test_any_line_is_a_sign_of_life_and_no_more(words: str) -> None:
    seen = View("measuring", lambda frame: None, Time())
    seen.listen("full", words)
    seen.listen("full", f"alive {words}")
    state = seen.lanes["full"]
    if figures(words) is None:
        assert (state.steps, state.step_s) == (0, None)


def test_many_can_listen_to_one_worker() -> None:
    heard: list[tuple[str, str]] = []
    seen = View("training", lambda frame: None, Time())
    hear = listener(seen, lambda lane, words: heard.append((lane, words)))
    assert hear is not None
    hear("full", line(2, 0.2, 0.1))
    assert heard == [("full", line(2, 0.2, 0.1))]
    assert seen.lanes["full"] == LaneState(steps=2, step_s=0.1, busy=0.5, rss=300 * 2**20)
    assert listener(lambda done, total: None) is None
    assert watcher_of(lambda done, total: None) is None
    assert watcher_of(seen) is seen


# ---- what the workers say ----


@given(st.lists(st.tuples(st.floats(0.001, 0.2), st.floats(0.001, 0.2)), min_size=1, max_size=40))
def test_the_figures_of_the_lines_sum_to_what_the_steps_took(steps: list[tuple[float, float]]) -> None:
    signs, at, told = Signs(), 1e6, []  # far in the future: the first line has figures
    for compute, communication in [*steps, (0.3, 0.3)]:  # the last step is long enough for a line of its own
        middle, end = at + compute, at + compute + communication
        said = signs.step([("forward", 0, at, middle, 0.0), ("communication", -1, middle, end, 0.0)])
        assert said.split(" ")[0] == "alive"
        told += [found] if (found := figures(said.partition(" ")[2])) is not None else []
        at = end
    steps = [*steps, (0.3, 0.3)]
    assert sum(each["steps"] for each in told) == len(steps)
    assert sum(each["s"] for each in told) == pytest.approx(sum(map(sum, steps)), abs=1e-4)
    assert sum(each["busy"] for each in told) == pytest.approx(sum(compute for compute, _ in steps), abs=1e-4)
    assert len(told) <= sum(map(sum, steps)) / saying.EVERY_S + 2


def test_terse_signs_are_those_with_figures() -> None:
    signs, at = Signs(), 1e6
    signs.terse = True
    said = [signs.step([("forward", 0, at + 0.1 * number, at + 0.1 * (number + 1), 0.0)]) for number in range(30)]
    told = [found for line in said if line and (found := figures(line.partition(" ")[2])) is not None]
    assert 0 < len(told) == sum(map(bool, said)) < 15
    assert sum(each["steps"] for each in told) >= 27


def test_a_step_without_segments_is_a_plain_sign() -> None:
    assert Signs().step([]) == "alive"


def test_memory_is_this_process_s() -> None:
    import psutil

    if not Path("/proc/self/statm").exists():
        pytest.skip("the system has no /proc/self/statm")
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)


# ---- where it is shown ----


def test_it_is_shown_on_terminals_only_unless_asked() -> None:
    pipe, terminal = Console(file=StringIO()), Console(file=StringIO(), force_terminal=True)
    assert [wanted(None, each, as_json=False) for each in (pipe, terminal)] == [False, True]
    assert not wanted(None, terminal, as_json=True)
    assert wanted(True, pipe, as_json=True)
    assert not wanted(False, terminal, as_json=False)


def test_it_leaves_the_terminal_as_it_was() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=110)
    with live(console, "measuring") as seen:
        seen.plans(PLANS)
        seen.launch(["full"], TASKS)
        seen.listen("full", line(1, 0.1, 0.1))
        console.print("launch 1 of 5")
    assert isinstance(console.file, StringIO)
    written = console.file.getvalue()
    assert "launch 1 of 5" in re.sub(r"\x1b\[[0-9;]*m", "", written)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor is back


CHILD = """
import sys
from rich.console import Console
from steelyard.policies import policy_from_text
from steelyard.runner.live import Planned, live, wanted
console = Console(stderr=True)
assert wanted(None, console, as_json=False)
with live(console, "measuring") as seen:
    seen.plans([Planned("uniform", 32, 0.1)])
    seen.launch(["full", "sse"], [{"op": "block", "index": 0, "round": 0}])
    for lane in ("full", "sse"):
        seen.listen(lane, 'alive {"steps":4,"s":0.4,"busy":0.3,"rss":314572800}')
    seen(1, 2)
    console.print("a line for people")
"""


def test_on_a_real_terminal() -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-c", CHILD], {**os.environ, "TERM": "xterm", "COLUMNS": "110"})
    written = b""
    while True:
        ready, _, _ = select.select([terminal], [], [], 300)
        assert ready, "the child says nothing for five minutes"
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        written += chunk
    _, status = os.waitpid(child, 0)
    screen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode(errors="replace"))
    assert os.waitstatus_to_exitcode(status) == 0, screen
    assert "uniform   now 320 samples/s (100 ms)   predicted 320 samples/s (100 ms)   error +0.0 %" in screen
    assert re.search(r"full +│ █{15}░{5} +75 % │ 300 MiB", screen)
    assert "a line for people" in screen


@pytest.mark.slow
def test_a_replay_tells_it_everything(tiny_scenario: Scenario, tmp_path: Path) -> None:
    """Real workers: plans, launches, steps and memory reach the view, and the measured runs are what they were."""
    frames: list[str] = []
    seen = View("measuring", lambda frame: frames.append(text(frame)), clock=iter(range(10**9)).__next__)
    scenario = tiny_scenario.model_copy(
        update={"replay": tiny_scenario.replay.model_copy(update={"steps": 40, "rounds": 1, "launches": 1})}
    )
    study = replay(scenario, [policy_from_text("uniform"), policy_from_text("makespan")], tmp_path, tick=seen)
    assert seen.launches == scenario.replay.launches
    assert {plan.label for plan in seen.known} >= {"uniform", "makespan"}
    assert (seen.done, seen.total) == (seen.total, seen.done)
    assert {name: state.tasks for name, state in seen.lanes.items()} == dict.fromkeys(("full", "sse"), len(seen.tasks))
    assert all(state.rss > 50 * 2**20 for state in seen.lanes.values() if state.steps)
    shown = "\n".join(frames)
    assert re.search(r"makespan.*now .* samples/s .*predicted .* samples/s .*error", shown)
    assert re.search(r"full.*[█░]+ +\d+ %.*\d+ MiB", shown)
    assert len(study.measured) >= 3
