"""Train as a plan divides the work: data parallel, each rank with micro-batches of its own. Needs torch, not Steelyard.

Start it with the ``launch.sh`` beside it, or with ``torchrun --nproc-per-node N train.py`` where the machines number
the ranks in turn. It takes ``--steps``, ``--csv FILE`` (step times, which ``steelyard import`` reads) and
``--init-method``.

Your model goes into :func:`build_model`, your data into :func:`batch`; until then the weights and the tokens are drawn
at random. Gradients are those of the mean loss over the *global* batch: each micro-batch adds its summed loss over the
size of the global batch, so that ranks with more samples weigh more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

PLAN: dict[str, Any] = {}


def build_model() -> nn.Module:
    """The model with random weights, equal on every rank."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(**PLAN["config"])
    family: Any = AutoModelForCausalLM if PLAN["task"] == "causal-lm" else AutoModelForSequenceClassification
    model: nn.Module = family.from_config(config)
    return model


def batch(step: int, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of ``count`` samples of a step's global batch, from number ``first``: the same on any rank."""
    tokens, labels = [], []
    for number in range(first, first + count):
        source = torch.Generator().manual_seed(step * PLAN["global_batch"] + number)
        tokens.append(torch.randint(PLAN["config"]["vocab_size"], (PLAN["sequence_length"],), generator=source))
        labels.append(torch.randint(2, (), generator=source))
    inputs = torch.stack(tokens)
    return (inputs, inputs) if PLAN["task"] == "causal-lm" else (inputs, torch.stack(labels))


def loss_of(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The samples' part of the mean loss over the global batch."""
    logits = model(input_ids=inputs).logits.float()
    if PLAN["task"] == "causal-lm":
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    terms: float = PLAN["global_batch"] * (labels.numel() / len(inputs))
    return cross_entropy(logits, labels, reduction="sum") / terms


def divided(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as the plan shards it: not at all (DDP), gradients and states (2), weights too (3)."""
    if PLAN["recompute"] == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]  # of transformers
    model = model.to(device).train()
    if dist.get_world_size() == 1:
        return model
    if not PLAN["zero"]:
        own = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=own, bucket_cap_mb=PLAN["bucket_mib"])
    policy = MixedPrecisionPolicy()
    if PLAN["dtype"] == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in [*blocks(model), model]:
        fully_shard(block, mp_policy=policy, reshard_after_forward=PLAN["zero"] == 3)
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's blocks: the list of modules that holds most of its weights."""
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList)]
    largest = max(lists, key=lambda each: sum(weight.numel() for weight in each.parameters()), default=nn.ModuleList())
    return list(largest)


@contextlib.contextmanager
def accumulating(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Within it, gradients are sent only with the last micro-batch; with zero = 3 a shard at a time, with each."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule) and PLAN["zero"] == 2:
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last)
    yield


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, device: torch.device) -> float:
    """One step of this rank; returns its part of the mean loss."""
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = PLAN["micro_batches"][rank]
    first = sum(map(sum, PLAN["micro_batches"][:rank]))
    total = 0.0
    for number, size in enumerate(sizes):
        inputs, labels = (each.to(device) for each in batch(step, first, size))
        first += size
        with accumulating(model, last=number == len(sizes) - 1), precision(device):
            loss = loss_of(model, inputs, labels)
            torch.autograd.backward(
                loss * world
            )  # both ways of dividing average over the ranks; the plan wants the sum
        total += float(loss.detach())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast where nothing else brings the weights to 16 bits."""
    casts = PLAN["dtype"] == "bf16" and not PLAN["zero"]
    return torch.autocast(device.type, torch.bfloat16) if casts else contextlib.nullcontext()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The workload's optimizer."""
    rate = PLAN["learning_rate"]
    if PLAN["optimizer"] == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9 if PLAN["optimizer"] == "momentum" else 0.0)


def now(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Train for some steps and tell each: number, loss, seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--csv", type=Path, help="file for the step times of rank 0")
    parser.add_argument("--init-method", default="env://")
    options = parser.parse_args()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = int(os.environ["WORLD_SIZE"])
    if world != len(PLAN["micro_batches"]):
        sys.exit(f"the plan is for {len(PLAN['micro_batches'])} ranks, there are {world}")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=options.init_method, rank=int(os.environ["RANK"]), world_size=world)
    rows = train(options.steps, device)
    dist.barrier()  # nobody leaves while another still sends
    dist.destroy_process_group()
    if options.csv is not None and rows:
        options.csv.write_text("step,step_time_s\n" + "".join(f"{step},{seconds!r}\n" for step, seconds in rows))


def train(steps: int, device: torch.device) -> list[tuple[int, float]]:
    """Step numbers and seconds, on rank 0; nothing on the others."""
    model = divided(build_model(), device)
    optimizer = make_optimizer(model)
    rows = []
    begin = now(device)
    for step in range(steps):
        loss = torch.tensor(train_step(model, optimizer, step, device), dtype=torch.float64, device=device)
        end = now(device)
        dist.all_reduce(loss)
        if dist.get_rank() == 0:
            rows.append((step, end - begin))
            sys.stdout.write(json.dumps({"step": step, "loss": float(loss), "seconds": end - begin}) + "\n")
            sys.stdout.flush()
        begin = now(device)
    return rows


if __name__ == "__main__":
    main()
