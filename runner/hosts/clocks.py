"""One clock for members on several machines: each learns how far its own is from the first member's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROUNDS = 8
"""Exchanges with each member, of which the quickest counts."""


def agreed_offset_s(rank: int, world: int, device: torch.device) -> float:
    """Seconds to add to this process's monotonic clock to have that of rank 0; all members call it together.

    Of some exchanges with rank 0, the one that took least tells most: its answer was written between the two readings
    here, so half of that time bounds the error (Cristian 1989: recalled). ``device``: where collectives take tensors.
    """
    if rank:
        return min(_ask(device) for _ in range(ROUNDS))[1]
    for other in range(1, world):
        for _ in range(ROUNDS):
            _answer(other, device)
    return 0.0


def _ask(device: torch.device) -> tuple[float, float]:
    """How long an exchange took, and the offset that it shows."""
    import torch
    import torch.distributed as dist

    clock = torch.zeros(1, dtype=torch.float64, device=device)
    start = time.monotonic()
    dist.send(clock, 0)
    dist.recv(clock, 0)
    there = float(clock)  # which waits for the device
    end = time.monotonic()
    return end - start, there - (start + end) / 2


def _answer(other: int, device: torch.device) -> None:
    import torch
    import torch.distributed as dist

    clock = torch.zeros(1, dtype=torch.float64, device=device)
    dist.recv(clock, other)
    float(clock)
    dist.send(torch.tensor([time.monotonic()], dtype=torch.float64, device=device), other)
