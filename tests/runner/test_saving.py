"""From a member to bytes and back: training goes on as if it had never stopped, whatever the optimizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="members need the runner extra")

from steelyard.runner.worker.member import flat_gradients, make_optimizer  # noqa: E402 - after the skip
from steelyard.runner.worker.saving import (  # noqa: E402
    gathered,
    load_random,
    load_state,
    random_bytes,
    seed_random,
    share_losses,
    state_bytes,
)


class Tied(torch.nn.Module):  # type: ignore[misc]  # torch may be missing
    """Dropout, a buffer, and a head that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.3)
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Any) -> Any:
        return self.head(self.drop(self.norm(self.embedding(ids))))


def member(optimizer: str, rank: int = 0) -> Any:
    """What the tasks need of a member, without a group of processes."""
    torch.manual_seed(7)
    model = Tied()
    weights = list(model.parameters())
    made = SimpleNamespace(model=model, rank=rank, device=torch.device("cpu"), losses=[], loss_parts=[])
    made.flat = flat_gradients(weights)
    made.optimizer = make_optimizer(optimizer, weights, 1e-2)
    return made


def steps(made: Any, start: int, count: int) -> None:
    for number in range(start, start + count):
        ids = torch.arange(number, number + 6) % 11
        torch.nn.functional.cross_entropy(made.model(ids), (ids + 1) % 11).backward()
        made.optimizer.step()
        made.flat.zero_()


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "sgd"])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_member_goes_on_bit_by_bit(optimizer: str, before: int) -> None:
    """Also from the very beginning, when the optimizer has no state yet."""
    whole = member(optimizer)
    seed_random(whole, 3, 0)
    steps(whole, 0, before)
    state, random = state_bytes(whole), random_bytes(whole)
    steps(whole, before, 4)
    fresh = member(optimizer)
    torch.manual_seed(99)
    steps(fresh, 50, 2)  # it stands anywhere else
    load_state(fresh, state)
    load_random(fresh, random)
    assert state_bytes(fresh) == state
    steps(fresh, before, 4)
    assert state_bytes(fresh) == state_bytes(whole)
    assert random_bytes(fresh) == random_bytes(whole)


def test_the_random_state_matters() -> None:
    """The test above can fail: without it, dropout draws other masks."""
    one, other = member("adamw"), member("adamw")
    seed_random(one, 3, 0)
    steps(one, 0, 3)
    seed_random(other, 4, 0)
    steps(other, 0, 3)
    assert state_bytes(one) != state_bytes(other)


def test_gradients_stay_views_of_the_one_buffer() -> None:
    """The all-reduce is over that buffer; a parameter that was replaced would drop out of it."""
    made = member("adamw")
    load_state(made, state_bytes(made))
    steps(made, 0, 1)
    ids = torch.arange(6)
    torch.nn.functional.cross_entropy(made.model(ids), ids).backward()
    assert float(made.flat.abs().sum()) > 0


def test_members_draw_from_streams_of_their_own() -> None:
    drawn = []
    for rank, step in ((0, 0), (1, 0), (0, 5), (0, 0)):
        seed_random(member("sgd", rank), 3, step)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


def test_a_lone_member_shares_with_itself() -> None:
    made = member("sgd")
    made.loss_parts = [0.5, 0.25]
    share_losses(made, [0])
    assert (made.losses, made.loss_parts) == ([0.5, 0.25], [])
    share_losses(made, [0])
    assert made.losses == [0.5, 0.25]
    assert gathered(made, [0], b"x") == [b"x"]
