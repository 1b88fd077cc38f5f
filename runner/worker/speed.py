"""The task that tells what a lane can do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .member import Member

if TYPE_CHECKING:
    import torch


def figures(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Capability, and the best of several short runs of a product, a copy and a small training step."""
    import torch

    torch.manual_seed(0)
    size, repeat = 512, member.lane["repeat"]
    a = torch.randn(size, size, device=member.device)
    big = torch.zeros(16 * 2**20, device=member.device)
    target = torch.empty_like(big)
    product = best_of(member, lambda: a @ a, seconds=0.4)
    copy = best_of(member, lambda: target.copy_(big), seconds=0.4)
    training = best_of(member, training_kernel(member.device), seconds=0.8)
    cpu = member.device.type == "cpu"
    return {
        "capability": torch.backends.cpu.get_cpu_capability() if cpu else torch.cuda.get_device_name(member.device),
        "product_flops": 2 * size**3 / product / repeat,
        "copy_bytes_per_s": 2 * 4 * big.numel() / copy,
        "training_rate": 1 / training / repeat,
        "memory_bytes": memory_bytes(member.device),
        "threads": torch.get_num_threads(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "torch": torch.__version__,
    }


def memory_bytes(device: torch.device) -> int:
    """Bytes that the device's processes share: the GPU's memory, or the host's."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def training_kernel(device: torch.device) -> Callable[[], Any]:
    """A forward and backward that is like a transformer block's work in small: products, a norm, an activation."""
    import torch

    block = torch.nn.Sequential(
        torch.nn.Linear(128, 512), torch.nn.GELU(), torch.nn.Linear(512, 128), torch.nn.LayerNorm(128)
    ).to(device)
    x = torch.randn(256, 128, device=device)

    def run() -> None:
        block.zero_grad(set_to_none=True)
        block(x).square().mean().backward()

    return run


def best_of(member: Member, work: Callable[[], Any], *, seconds: float) -> float:
    """The shortest time of one call within a period: what the device can do when nobody disturbs it."""
    for _ in range(3):
        work()
    best, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        start = member.now()
        work()
        best = min(best, member.now() - start)
    return best


TASKS = {"figures": figures}
