"""From a member to bytes and back: training goes on as if it had never stopped, whatever the optimizer."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steelyard.runner.checkpoint import DamagedError, Manifest, Part, Stored

torch = pytest.importorskip("torch", reason="members need the runner extra")
from safetensors.torch import load  # noqa: E402 - after the skip
from steelyard.runner.worker.member import flat_gradients, make_optimizer  # noqa: E402 - after the skip
from steelyard.runner.worker.saving import (  # noqa: E402
    collected,
    cut,
    gathered,
    joined,
    load_random,
    load_state,
    needed,
    random_bytes,
    recut,
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
    made.weights, made.flat = weights, flat_gradients(weights)
    made.job = {"optimizer": optimizer}
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
    state, random = state_bytes(whole, whole), random_bytes(whole)
    steps(whole, before, 4)
    fresh = member(optimizer)
    torch.manual_seed(99)
    steps(fresh, 50, 2)  # it stands anywhere else
    load_state(fresh, fresh, load(state))
    load_random(fresh, random)
    assert state_bytes(fresh, fresh) == state
    steps(fresh, before, 4)
    assert state_bytes(fresh, fresh) == state_bytes(whole, whole)
    assert random_bytes(fresh) == random_bytes(whole)


def test_the_random_state_matters() -> None:
    """The test above can fail: without it, dropout draws other masks."""
    one, other = member("adamw"), member("adamw")
    seed_random(one, 3, 0)
    steps(one, 0, 3)
    seed_random(other, 4, 0)
    steps(other, 0, 3)
    assert state_bytes(one, one) != state_bytes(other, other)


def test_gradients_stay_views_of_the_one_buffer() -> None:
    """The all-reduce is over that buffer; a parameter that was replaced would drop out of it."""
    made = member("adamw")
    load_state(made, made, load(state_bytes(made, made)))
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


PLACES = 3
"""Weights of the model."""
SOME = st.sets(st.integers(0, PLACES - 1), min_size=1)


def some_of(made: Any, places: set[int], shard: set[int] | None = None) -> Any:
    """A member's part with some of the weights; ``shard``: those of them whose states it keeps, as ZeRO 1 does."""
    own = [weight for place, weight in enumerate(made.weights) if place in (places if shard is None else shard)]
    optimizer = make_optimizer(made.job["optimizer"], own, 1e-2)
    optimizer.state.update({weight: made.optimizer.state[weight] for weight in own if weight in made.optimizer.state})
    weights = [made.weights[place] for place in sorted(places)]
    return SimpleNamespace(weights=weights, optimizer=optimizer if shard is None else SimpleNamespace(optim=optimizer))


def written(folder: Path, made: Any, parts: list[Any]) -> Manifest:
    """Files of states as these parts have them, one rank each, and what a checkpoint says of them."""
    data = {f"state-{rank}.safetensors": state_bytes(made, part) for rank, part in enumerate(parts)}
    for name, each in data.items():
        (folder / name).write_bytes(each)
    ranks = [
        Part(rank=rank, lane="any", state=f"state-{rank}.safetensors", random="random-0.safetensors")
        for rank in range(len(parts))
    ]
    files = {name: Stored(sha256=hashlib.sha256(each).hexdigest(), bytes=len(each)) for name, each in data.items()}
    digests = dict.fromkeys(("scenario_sha256", "plan_sha256", "data_sha256"), "a" * 64)
    return Manifest(step=3, next_sample=0, parts=ranks, losses="losses.safetensors", files=files, **digests)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("divided")


@cache
def trained(optimizer: str) -> Any:
    made = member(optimizer)
    steps(made, 0, 3)
    return made


@settings(max_examples=30)
@given(
    optimizer=st.sampled_from(["adamw", "momentum", "sgd"]),
    before=st.lists(SOME, min_size=1, max_size=3),
    sharded=st.booleans(),
    after=SOME,
)
def test_however_it_was_divided_any_other_division_finds_all_that_it_holds(
    place: Path, optimizer: str, before: list[set[int]], sharded: bool, after: set[int]
) -> None:
    """Stages, replicas of them, whole models, shards of the states: whoever holds something takes it from a holder."""
    whole = trained(optimizer)
    everything = set(range(PLACES))
    parts = [some_of(whole, everything, each) if sharded else some_of(whole, each) for each in before]
    manifest = written(place, whole, parts)
    fresh = member(optimizer)
    part, names = some_of(fresh, after), needed(fresh, some_of(fresh, after))
    files = [each.state for each in manifest.parts]
    if not after <= set().union(*before) and not (sharded and optimizer == "sgd"):
        with pytest.raises(DamagedError, match=r"has no (model|optimizer)\."):
            collected(place, manifest, files, names)
        return
    load_state(fresh, part, collected(place, manifest, files, names))
    assert state_bytes(fresh, part) == state_bytes(whole, some_of(whole, after))


@given(rows=st.integers(0, 9), before=st.integers(1, 5), after=st.integers(1, 5), lost=st.booleans())
def test_pieces_become_other_pieces_and_a_lost_one_is_missed(rows: int, before: int, after: int, lost: bool) -> None:
    """As torch cuts: nine rows for four members are three, three, three and none."""
    whole = torch.arange(2.0 * rows).reshape(rows, 2)
    kept = [f"{number}of{before}" if before > 1 else "" for number in range(before)]
    files = [{f"model.w/{piece}".rstrip("/"): cut(whole, piece)} for piece in kept][: -1 if lost else None]
    asked = [f"{number}of{after}" if after > 1 else "" for number in range(after)]
    found = recut(files, {f"model.w/{piece}".rstrip("/") for piece in asked})
    if lost:
        assert not found
    else:
        whole_again = joined({piece: found[f"model.w/{piece}".rstrip("/")] for piece in asked})
        assert whole_again is not None
        assert torch.equal(whole_again, whole)
        assert [len(found[f"model.w/{piece}".rstrip("/")]) for piece in asked] == sizes_of(rows, after)


def sizes_of(rows: int, count: int) -> list[int]:
    """Rows of each piece: as many as a full one has, until there are none left."""
    full = -(-rows // count)
    return [max(0, min(full, rows - number * full)) for number in range(count)]
