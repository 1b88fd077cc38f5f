"""The task of a run whose plan may change under way: steps, questions to the driver, and weights that change hands.

Before a step at which the policy is asked, every member writes what it measured since the last question into the folder
of the task and waits for the driver's answer there. Where the answer is another plan, members that are to hold a layer
get its weights and the optimizer's states from the first of those that held it, byte for byte; the next step goes on
with the samples that were due, so that none is lost or trained twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .contention import contended_share
from .member import OPTIMIZER_STATES, Member, Segment, say
from .parts import Part, hand_weight, holders_of, part_of

LOOK_S = 0.001
"""Between two looks for the driver's answer."""
SIGN_S = 1.0
"""Between two signs of life while there is none."""
States = dict[int, dict[str, Any]]
"""The optimizer's states of weights, by their place in the model."""


def course(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Steps ``[0, total)``, as the plan of the moment divides each of them.

    Returns:
        Segments of each step, the losses that this member had the last stage of, when it stood still (before which
        step, from when to when), by which means it was slowed, and the share of its passes that others disturbed.
    """
    part = part_of(member, task["division"])
    division = task["division"]
    steps: list[list[Segment]] = []
    losses: list[float] = []
    stood: list[list[float]] = []
    told, asks = 0, True
    member.meet()
    for number in range(task["total"]):
        if asks and number in task["points"]:
            begin = member.now()
            steps[told:] = member.settle(steps[told:])
            with member.state.waits():
                answer = ask(member, Path(task["folder"]), number, steps[told:])
            told, asks = len(steps), answer["again"]
            if answer["division"] != division:
                part = change(member, division, answer["division"])
                division = answer["division"]
            member.meet()
            stood.append([number, begin, member.now()])
        member.slow_to(task["slow"][number][member.rank])
        steps.append([])
        losses.append(part.step(number * member.job["global_batch"], steps[-1]) if part is not None else 0.0)
        if part is None:
            say("alive")
    member.slow_to(1.0)
    steps[told:] = member.settle(steps[told:])
    if "file" in task and part is not None:
        _save(member, part, task["file"])
    slowed_by, contended = sorted(member.slowed_by), contended_share(member, steps)
    losses = list(map(float, losses))
    return {"steps": steps, "losses": losses, "stood": stood, "slowed_by": slowed_by, "contended": contended}


def ask(member: Member, folder: Path, number: int, steps: Sequence[Sequence[Segment]]) -> Any:
    """Tell the driver what was measured, and wait for the division that goes on."""
    hidden = folder / f".asked-{number}-{member.rank}"
    hidden.write_text(json.dumps(steps))
    hidden.rename(folder / f"asked-{number}-{member.rank}.json")
    say(f"asked {number}")
    answer, seen = folder / f"answer-{number}.json", time.monotonic()
    while not answer.exists():
        time.sleep(LOOK_S)
        if time.monotonic() - seen > SIGN_S:
            seen = time.monotonic()
            say("waits")
    return json.loads(answer.read_text())


def change(member: Member, old: Mapping[str, Any], new: dict[str, Any]) -> Part | None:
    """Go from one division to another: weights and states go to those that are to hold them."""
    before, after = part_of(member, dict(old)), part_of(member, new)
    held, wanted = holders_of(member, old), holders_of(member, new)
    states = _states(member, before)
    for place in range(len(member.weights)):
        for target in sorted(wanted[place] - held[place]):
            with member.state.waits():
                _hand_over(member, place, states, (min(held[place]), target))
    if after is not None:
        places = {id(weight): place for place, weight in enumerate(member.weights)}
        after.optimizer.state.clear()
        for weight in after.weights:
            after.optimizer.state[weight] = states[places[id(weight)]]
        after.clear()
    return after


def _states(member: Member, part: Part | None) -> States:
    """What the optimizer knows of the weights that a member holds."""
    if part is None:
        return {}
    places = {id(weight): place for place, weight in enumerate(member.weights)}
    return {places[id(weight)]: dict(part.optimizer.state[weight]) for weight in part.weights}


def _hand_over(member: Member, place: int, states: States, way: tuple[int, int]) -> None:
    """One weight and its states from a member to another; the rest take no part."""
    import torch
    import torch.distributed as dist

    weight, (source, target) = member.weights[place], way
    names = OPTIMIZER_STATES[member.job["optimizer"]]
    hand_weight(member, place, way)
    if member.rank == source:
        for name in names:
            dist.send(states[place][name].contiguous().to(member.wire), target)
    elif member.rank == target:
        states[place] = {}
        for name in names:
            like = torch.zeros(()) if name == "step" else weight.detach()
            received = torch.empty_like(like, device=member.wire)
            dist.recv(received, source)
            states[place][name] = received.to(weight.device)


def _save(member: Member, part: Part, file: str) -> None:
    """The weights that a member holds in the end, by their names."""
    from safetensors.torch import save_file

    names = {id(weight): name for name, weight in member.model.named_parameters()}
    found = {names[id(weight)]: weight.detach().cpu().clone() for weight in part.weights}
    save_file(found, f"{file}.{member.rank}")


TASKS = {"course": course}
