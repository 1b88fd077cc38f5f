"""Schedule: each piece once, forwards before backwards, and as many micro-batches in flight as the papers say."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.sim.schedule import Piece, deal_samples, in_turns, most_in_flight, order

KINDS = st.sampled_from(["gpipe", "1f1b", "interleaved", "accumulate"])


@st.composite
def lines(draw: st.DrawFn) -> tuple[Any, int, int, int]:
    """Kind, workers, chunks and micro-batches that go together."""
    kind, workers = draw(KINDS), draw(st.integers(1, 8))
    chunks = 1 if kind == "1f1b" else draw(st.integers(1, 4))
    count = workers * draw(st.integers(1, 4)) if kind == "interleaved" else draw(st.integers(1, 20))
    return kind, workers, chunks, count


@given(lines())
def test_every_piece_is_done_once_and_its_backward_after_its_forward(line: tuple[Any, int, int, int]) -> None:
    kind, workers, chunks, count = line
    for position in range(workers):
        pieces = order(kind, workers, position, chunks, count)
        assert sorted(pieces) == [
            Piece(backward, chunk, number)
            for backward in (False, True)
            for chunk in range(chunks)
            for number in range(count)
        ]
        for piece in pieces:
            if piece.backward:
                assert pieces.index(piece._replace(backward=False)) < pieces.index(piece)


@given(lines())
def test_every_chunk_takes_micro_batches_in_order(line: tuple[Any, int, int, int]) -> None:
    """Messages of a channel arrive in the order in which they are asked for."""
    kind, workers, chunks, count = line
    for position in range(workers):
        pieces = order(kind, workers, position, chunks, count)
        for backward in (False, True):
            for chunk in range(chunks):
                numbers = [each.micro_batch for each in pieces if each[:2] == (backward, chunk)]
                assert numbers == list(range(count))


@given(lines())
def test_nobody_waits_for_ever(line: tuple[Any, int, int, int]) -> None:
    """Whoever can go on does; all get to their ends."""
    kind, workers, chunks, count = line
    left = [list(order(kind, workers, position, chunks, count)) for position in range(workers)]
    done: set[tuple[bool, int, int]] = set()
    stages = workers * chunks
    while any(left):
        before = len(done)
        for position, pieces in enumerate(left):
            while pieces:
                backward, chunk, number = pieces[0]
                stage = chunk * workers + position
                source = stage + 1 if backward else stage - 1
                if 0 <= source < stages and (backward, source, number) not in done:
                    break
                done.add((backward, stage, number))
                pieces.pop(0)
        assert len(done) > before


def in_flight(kind: Any, workers: int, position: int, chunks: int, count: int) -> int:
    held = {(chunk, number): 1.0 for chunk in range(chunks) for number in range(count)}
    return int(most_in_flight(order(kind, workers, position, chunks, count), held))


@given(workers=st.integers(1, 10), count=st.integers(1, 30), data=st.data())
def test_gpipe_holds_all_and_1f1b_as_many_as_there_are_stages_behind(
    workers: int, count: int, data: st.DataObject
) -> None:
    """GPipe m, 1F1B min(m, p - i) (Narayanan et al. 2021, section 2.2.1)."""
    position = data.draw(st.integers(0, workers - 1))
    assert in_flight("gpipe", workers, position, 1, count) == count
    assert in_flight("1f1b", workers, position, 1, count) == min(count, workers - position)


@given(workers=st.integers(1, 8), chunks=st.integers(1, 6), turns=st.integers(1, 6), data=st.data())
def test_interleaved_holds_so_many_chunks(workers: int, chunks: int, turns: int, data: st.DataObject) -> None:
    """min(m v, 2 (p - 1 - i) + (v - 1) p + 1) chunks, each 1/v of the stages of a worker (the same, section 2.2.2)."""
    position, count = data.draw(st.integers(0, workers - 1)), workers * turns
    expected = min(count * chunks, 2 * (workers - 1 - position) + (chunks - 1) * workers + 1)
    assert in_flight("interleaved", workers, position, chunks, count) == expected


@given(lines(), st.data())
def test_the_most_held_is_the_largest_prefix(line: tuple[Any, int, int, int], data: st.DataObject) -> None:
    kind, workers, chunks, count = line
    pieces = order(kind, workers, 0, chunks, count)
    amounts = data.draw(st.lists(st.integers(0, 9), min_size=chunks * count, max_size=chunks * count))
    held = {(c, n): float(amounts[c * count + n]) for c in range(chunks) for n in range(count)}
    prefixes = [
        sum((-1 if each.backward else 1) * held[each.chunk, each.micro_batch] for each in pieces[:end])
        for end in range(len(pieces) + 1)
    ]
    assert most_in_flight(pieces, held) == max(prefixes)
    assert prefixes[-1] == 0


def test_the_orders_of_two_workers_written_out() -> None:
    """As in the figures of the papers, F for forward and B for backward, the chunk as a letter."""

    def written(kind: Any, position: int, chunks: int) -> str:
        return " ".join(f"{'FB'[b]}{'ab'[c]}{n}" for b, c, n in order(kind, 2, position, chunks, 4))

    assert written("gpipe", 0, 1) == "Fa0 Fa1 Fa2 Fa3 Ba0 Ba1 Ba2 Ba3"
    assert written("1f1b", 0, 1) == "Fa0 Fa1 Ba0 Fa2 Ba1 Fa3 Ba2 Ba3"
    assert written("1f1b", 1, 1) == "Fa0 Ba0 Fa1 Ba1 Fa2 Ba2 Fa3 Ba3"
    first = "Fa0 Fa1 Fb0 Fb1 Fa2 Bb0 Fa3 Bb1 Fb2 Ba0 Fb3 Ba1 Bb2 Bb3 Ba2 Ba3"
    second = "Fa0 Fa1 Fb0 Bb0 Fb1 Bb1 Fa2 Ba0 Fa3 Ba1 Fb2 Bb2 Fb3 Bb3 Ba2 Ba3"
    assert written("interleaved", 0, 2) == first
    assert written("interleaved", 1, 2) == second


# Samples of a micro-batch


@given(samples=st.integers(0, 10**6), weights=st.lists(st.integers(1, 1000), min_size=1, max_size=9))
def test_samples_are_dealt_once_and_within_one_of_the_share(samples: int, weights: list[int]) -> None:
    shares = [weight / sum(weights) for weight in weights]
    dealt = deal_samples(samples, shares)
    assert sum(dealt) == samples
    total = sum(map(Fraction, shares))
    for count, share in zip(dealt, shares, strict=True):
        assert abs(count - samples * Fraction(share) / total) < 1


@pytest.mark.parametrize(
    ("samples", "shares", "dealt"),
    [(5, [1.0], [5]), (5, [0.5, 0.5], [3, 2]), (1, [0.2, 0.8], [0, 1]), (7, [0.25, 0.25, 0.5], [2, 2, 3])],
)
def test_remainders_go_to_the_largest_and_then_to_the_first(
    samples: int, shares: list[float], dealt: list[int]
) -> None:
    assert deal_samples(samples, shares) == dealt


def test_accumulation_holds_one_micro_batch_at_a_time() -> None:
    """Every chunk of one micro-batch, and back, before the next one."""
    written = " ".join(f"{'FB'[b]}{'abc'[c]}{n}" for b, c, n in order("accumulate", 2, 1, 3, 2))
    assert written == "Fa0 Fb0 Fc0 Bc0 Bb0 Ba0 Fa1 Fb1 Fc1 Bc1 Bb1 Ba1"
    assert in_flight("accumulate", 2, 0, 3, 9) == 3


def test_chunks_take_turns_and_give_them_back() -> None:
    """Of its stages 1, 4 and 6 a worker takes the last one first."""
    pieces = order("gpipe", 2, 0, 3, 1)
    turned = in_turns(pieces, [1, 4, 6], [0, 2, 6, 3, 1, 5, 4])
    assert [piece.chunk for piece in turned] == [2, 0, 1, 1, 0, 2]
    assert in_turns(pieces, [1, 4, 6], range(7)) == pieces
