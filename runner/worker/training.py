"""Tasks that train and judge: steps of a plan in a row, the gradient of one step, labels of held-out samples."""

from __future__ import annotations

from typing import Any

from .member import Member, Segment, say
from .parts import at_present, hand_weight, holders_of, part_of

EVALUATED_AT_ONCE = 256


def gradients(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """The gradient of one step of a plan, as every participant holds it after the all-reduce, in a file each."""
    from safetensors.torch import save_file

    part = part_of(member, task)
    if part is None:
        return {"norm": 0.0}
    part.accumulate(0, [])
    member.settle([])  # nobody asks for these moments
    flat = part.gradient().detach().cpu()
    save_file({"gradient": flat}, task["file"] + f".{member.rank}")
    norm = float(flat.norm())
    part.clear()
    return {"norm": norm}


def train(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Training steps that follow those of the task before; nothing is measured again."""
    part = part_of(member, at_present(member, task))
    begin = member.now()
    losses: list[float] = []
    steps: list[list[Segment]] = []
    for number in range(task["steps"] if part else 0):
        assert part is not None
        steps.append([])
        losses.append(part.step((task["offset"] + number) * member.job["global_batch"], steps[-1]))
    end = member.now()
    losses = list(map(float, losses))
    steps = member.settle(steps)
    busy = sum(finish - start for step in steps for kind, _, start, finish, *_ in step if kind != "communication")
    if member.division is not None:  # whoever has no part now may have one later: all have the same number of steps
        losses, steps = losses or [0.0] * task["steps"], steps or [[] for _ in range(task["steps"])]
        member.untold += steps if member.asks else []
    member.loss_parts += losses
    member.busy_s, member.train_s = member.busy_s + busy, member.train_s + end - begin
    return {"loss": losses[-1] if losses else 0.0}


def evaluate(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Predicted and true labels of the held-out samples, on the first who takes part; others hand it what it lacks."""
    import torch

    task = at_present(member, task)
    judge = task["ranks"][0]
    if (part := part_of(member, task)) is not None:
        part.hand_back()
    for place, holders in enumerate(holders_of(member, task)):
        if judge not in holders:
            with member.state.waits():
                hand_weight(member, place, (min(holders), judge))
    if member.rank != judge:
        return {"predicted": [], "labels": []}
    member.model.eval()
    predicted: list[int] = []
    with torch.no_grad():
        for start in range(0, len(member.data["test_ids"]), EVALUATED_AT_ONCE):
            rows = slice(start, start + EVALUATED_AT_ONCE)
            answer = member.model(
                input_ids=member.data["test_ids"][rows], attention_mask=member.data["test_mask"][rows]
            )
            predicted += answer.logits.argmax(dim=1).tolist()
            say("judged")
    member.model.train()
    return {"predicted": predicted, "labels": member.data["test_labels"].tolist()}


TASKS = {"gradients": gradients, "train": train, "evaluate": evaluate}
