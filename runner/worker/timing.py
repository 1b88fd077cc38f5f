"""Tasks that measure steps: of one micro-batch size, of a collective, of a plan."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

from ..stationary import MOST_WARMUP, warming
from .boundaries import Boundaries, layer_seconds
from .contention import undisturbed
from .member import Member, Segment
from .parts import part_of


def profile(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Training steps of one micro-batch size, all members at once, each for a fixed time, nothing synchronised."""
    size = task["micro_batch"]

    def once() -> dict[str, Any]:
        steps: list[list[Segment]] = []
        edges: list[list[list[float]]] = []
        member.meet()
        member.step([size], 0, None, [])
        end = time.monotonic() + task["seconds"]
        with Boundaries(member) as boundaries:
            while time.monotonic() < end or len(steps) < task["least"]:
                steps.append([])
                member.step([size], len(steps) * size, None, steps[-1])
                if member.lane["repeat"] == 1:
                    edges.append(boundaries.take(steps[-1]))
        steps, edges = member.settle((steps, edges))
        quiet = [not any(map(member.disturbed, step)) for step in steps]
        return {"steps": steps, "quiet": quiet, "layers": list(map(layer_seconds, edges))}

    return undisturbed(member, once)


def gauge(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """The same as :func:`profile`, between other measurements: weights and optimizer are as before it.

    With ``slow``, the factors by rank, members are slowed down meanwhile as disturbances do it. Who is not among the
    ``gauged`` has no room for it, and waits meanwhile.
    """
    if member.rank not in task["gauged"]:
        return undisturbed(member, lambda: _wait(member))
    kept = copy.deepcopy((member.model.state_dict(), member.optimizer.state_dict()))
    member.slow_to(task["slow"][member.rank] if "slow" in task else 1.0)
    answer = profile(member, task)
    member.slow_to(1.0)
    member.model.load_state_dict(kept[0])
    member.optimizer.load_state_dict(kept[1])
    return answer


def _wait(member: Member) -> dict[str, Any]:
    """What a member does of :func:`profile` that takes no part in it."""
    member.meet()
    return {"steps": [], "quiet": [], "layers": []}


def all_reduce(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """All-reduces of one size: when this member entered and left each of them."""
    return _collectives(member, task)


def reduce_scatter(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """The same of reduce-scatters; the size is that of the whole buffer."""
    return _collectives(member, task)


def all_gather(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """The same of all-gathers; the size is that of what is gathered."""
    return _collectives(member, task)


def _collectives(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """When each member, which has computed before as in a step of a plan, entered and left each of them."""
    import torch
    import torch.distributed as dist

    kind = torch.bfloat16 if member.job.get("dtype") == "bf16" else torch.float32
    ranks, group = task["ranks"], member.group(task["ranks"])
    times: list[tuple[float, float]] = []
    wire = member.device if task["op"] == "all_reduce" else member.wire
    own = max(1, task["bytes"] // kind.itemsize // len(ranks))
    whole = torch.ones(own * len(ranks), device=wire, dtype=kind)
    part = torch.ones(own, device=wire, dtype=kind)
    member.meet()
    if member.rank not in ranks:
        return {"times": []}
    for _ in range(task["repeats"] + 2):
        work(member, task.get("work", 0))
        whole.fill_(1.0)
        start = member.mark()
        with member.state.waits():
            if task["op"] == "all_reduce":
                dist.all_reduce(whole, group=group)
            elif task["op"] == "reduce_scatter":
                dist.reduce_scatter_tensor(part, whole, group=group)
            else:
                dist.all_gather_into_tensor(whole, part, group=group)
        times.append((start, member.mark()))
    return {"times": member.settle(times)[2:]}


def message(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Messages to and fro between two members: when each one began to send, or had received.

    Who sends has computed before, and who receives waits for it, as between stages. A loop of messages alone finds
    caches warm and threads awake: one of a few kilobytes took a quarter of the time in it. Between a GPU and a
    processor it goes through the host's memory.
    """
    import torch
    import torch.distributed as dist

    member.meet()
    if member.rank not in task["ranks"]:
        return {"moments": []}
    buffer = torch.ones(max(1, task["bytes"] // 4), device=member.device)
    sent = torch.empty_like(buffer, device=member.wire) if member.wire != member.device else buffer
    group, place = member.group(task["ranks"]), task["ranks"].index(member.rank)
    peer = task["ranks"][1 - place]
    moments: list[float] = []
    for number in range(2 * (task["repeats"] + 1)):
        sends = number % 2 == place
        if sends:
            work(member, task.get("work", 0))
        start = member.mark()
        if sends and sent is not buffer:
            sent.copy_(buffer)
        pending = dist.batch_isend_irecv([dist.P2POp(dist.isend if sends else dist.irecv, sent, peer, group)])
        with member.state.waits():
            for each in pending:
                each.wait()
        if not sends and sent is not buffer:
            buffer.copy_(sent)
        moments.append(start if sends else member.mark())
    return {"moments": member.settle(moments)[2:]}


def work(member: Member, samples: int) -> None:
    """A forward pass that nothing is learned from; of no samples, nothing."""
    import torch

    if samples:
        with torch.no_grad():
            member.loss(0, samples, 1)


def block(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Consecutive steps of a plan: segments of each step (the last warm-up step is the lead-in, step 0), and losses.

    Before the lead-in, members step until all of them have stopped getting faster; ``warmup`` says how many steps were
    left out, the lead-in included, and ``settled`` whether that was enough.
    """
    part = part_of(member, task)
    group = member.group(task["ranks"])

    def once() -> dict[str, Any]:
        steps: list[list[Segment]] = []
        losses: list[float] = []

        def step() -> None:
            steps.append([])
            assert part is not None
            losses.append(part.step((task["offset"] + len(losses)) * member.job["global_batch"], steps[-1]))

        member.meet()
        warm, settled = warm_up(member, task, step, group) if part else (0, True)
        for _ in range(1 + task["steps"] if part else 0):
            step()
        member.meet()
        steps = member.settle(steps)
        return {"steps": steps[warm:], "losses": list(map(float, losses)), "warmup": warm + 1, "settled": settled}

    return undisturbed(member, once)


def stages(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Steps of a pipeline (``steps``) and of the whole model in turns: segments of all but the first of each turn.

    In turns, since a host's speed changes within seconds by more than what a pass of a stage takes beyond its layers.
    """
    part = part_of(member, task)

    def once() -> dict[str, Any]:
        whole: list[list[Segment]] = []
        piped: list[list[Segment]] = []
        for _ in range(task["turns"]):
            for steps, step in ((whole, alone), (piped, together)):
                member.meet()
                step([])
                for _ in range(task["steps"]):
                    steps.append([])
                    step(steps[-1])
        piped, whole = member.settle((piped, whole))
        return {"steps": piped, "whole": whole}

    def alone(segments: list[Segment]) -> None:
        member.step([task["micro_batch"]], 0, None, segments)

    def together(segments: list[Segment]) -> None:
        if part is not None:
            part.step(0, segments)

    return undisturbed(member, once)


def warm_up(member: Member, task: dict[str, Any], step: Callable[[], None], group: Any) -> tuple[int, bool]:
    """Step until every member has stopped getting faster, or the bound is reached: steps made, and whether it was not.

    Where a single step is asked for, the lead-in is it.
    """
    times: list[float] = []
    most = task.get("most_warmup", MOST_WARMUP)
    while task["warmup"] > 1 and agreed(member, warming(times, task["warmup"], most), group):
        begin = member.now()
        step()
        times.append(member.now() - begin)
    return len(times), len(times) < max(most, task["warmup"] + 1)


def agreed(member: Member, wish: bool, group: Any) -> bool:
    """Whether any member of a group wishes something; without a group, whether this one does."""
    import torch
    import torch.distributed as dist

    if group is None:
        return wish
    votes = torch.tensor([float(wish)], device=member.device)
    with member.state.waits():
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=group)
    return bool(votes.item() > 0)


TASKS = {
    "profile": profile,
    "gauge": gauge,
    "stages": stages,
    "all_reduce": all_reduce,
    "reduce_scatter": reduce_scatter,
    "all_gather": all_gather,
    "message": message,
    "block": block,
}
