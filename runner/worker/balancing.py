"""The task that asks how a training goes on: as it is divided, or with weights and states in other hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .course import ask, change
from .member import Member, group_max
from .saving import share_losses


def rebalance(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Tell the driver what was measured, and go on as it answers; all members take part, whether they train or not."""
    if not member.asks:
        return {}
    before = member.division
    assert before is not None, "asked in a training whose division does not change"
    with member.state.waits():
        answer = ask(member, Path(task["folder"]), task["step"], member.untold)
    member.untold, member.asks = [], answer["again"]
    if answer["division"] != before:
        share_losses(member, range(member.world))  # of steps that others may have no part in from now on
        change(member, before, answer["division"])
        member.division = answer["division"]
        member.group(answer["division"]["ranks"])
        member.train_s = group_max(member, member.train_s)
    member.meet()
    return {}


TASKS = {"rebalance": rebalance}
