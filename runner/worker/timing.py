"""Tasks that measure steps: of one micro-batch size, of a collective, of a plan."""

from __future__ import annotations

import time
from typing import Any

from .contention import undisturbed
from .member import Member, Segment


def profile(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Training steps of one micro-batch size, all members at once, each for a fixed time, nothing synchronised."""
    size = task["micro_batch"]

    def once() -> dict[str, Any]:
        steps: list[list[Segment]] = []
        member.meet()
        member.step([size], 0, None, [])
        end = time.monotonic() + task["seconds"]
        while time.monotonic() < end or len(steps) < task["least"]:
            steps.append([])
            member.step([size], len(steps) * size, None, steps[-1])
        return {"steps": steps, "quiet": [not any(map(member.disturbed, step)) for step in steps]}

    return undisturbed(member, once)


def all_reduce(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """All-reduces of one size: when this member entered and left each of them."""
    import torch
    import torch.distributed as dist

    buffer = torch.ones(max(1, task["bytes"] // 4), device=member.device)
    group = member.groups[tuple(task["ranks"])]
    times = []
    member.meet()
    for _ in range(task["repeats"] + 2):
        buffer.fill_(1.0)
        start = member.now()
        dist.all_reduce(buffer, group=group)
        times.append((start, member.now()))
    return {"times": times[2:]}


def block(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Consecutive steps of a plan: segments of each step (the last warm-up step is the lead-in, step 0), and losses."""
    sizes = task["sizes"][member.rank]
    group = member.groups.get(tuple(task["ranks"]))
    first = sum(sum(each) for each in task["sizes"][: member.rank])

    def once() -> dict[str, Any]:
        steps: list[list[Segment]] = []
        losses: list[float] = []
        member.meet()
        for number in range(task["warmup"] + task["steps"] if sizes else 0):
            segments: list[Segment] = []
            start = first + (task["offset"] + number) * member.job["global_batch"]
            losses.append(member.step(sizes, start, group, segments))
            if number >= task["warmup"] - 1:
                steps.append(segments)
        member.meet()
        return {"steps": steps, "losses": losses}

    return undisturbed(member, once)


TASKS = {"profile": profile, "all_reduce": all_reduce, "block": block}
