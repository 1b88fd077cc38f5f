"""A worker within its group: its device, its peers, its clocks, the model with its gradients in one buffer."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import backend_of
from ..hosts.clocks import agreed_offset_s
from ..hosts.membership import join_store
from .clocks import Moments, clock_of, memory_of
from .quota import Quota
from .signs import Signs, State, state_file

if TYPE_CHECKING:
    import torch

Segment = tuple[str, int, float, float, float, int]
"""Kind, micro-batch (-1: none), start and end (monotonic clock, s), seconds that the process had the processor, stage
(-1: none)."""

WALL_OVER_CPU = 1.05
"""A compute segment that takes this much longer than its processor time was disturbed."""
FOR_LONG = timedelta(days=7)
"""A member waits in a collective for so long: a lane that has nothing to do waits until the training ends. Whether a
group hangs is for the driver to see, by its signs of life."""
CLOCK_S = 1e-4
"""What the clocks and their reading may add to a segment."""
RETRIED_SHARE = 0.2
"""Retries in one launch, as a share of its tasks: on a host that is always busy, retrying gains nothing."""


class Member:
    """A worker within its group: the device, the model, its gradients in one flat buffer, the data."""

    def __init__(self, job: dict[str, Any], rank: int, folder: Path) -> None:
        import torch

        self.job, self.rank, self.folder = job, rank, folder
        self.lane = job["lanes"][rank]
        self.world = len(job["lanes"])
        self.device = torch.device(self.lane["torch_device"])
        self.groups: dict[tuple[int, ...], Any] = {}
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # collectives and events would else be on the first GPU
        self.device_clock = clock_of(self.device)
        self.quota = Quota(**job["rooms"][rank])
        self.parts: dict[str, Any] = {}
        self.slow = 1.0
        """It keeps the processor busy until its passes and updates have taken so many times as long as they would."""
        self.pace = 1.0
        """How many times as long they are to take, by whatever means."""
        self.slowed_by: set[str] = set()
        """By which means it has been slowed: ``quota``, ``loop``."""
        self.signs = Signs(memory_of(self.device))
        self.state = State(state_file(folder / f"rank-{rank}.log"))
        self.retries_left = math.ceil(RETRIED_SHARE * len(job["tasks"]))
        self.losses: list[float] = []
        """Mean loss of each step of a training, as far as it has been shared with the others."""
        self.loss_parts: list[float] = []
        """This member's part of the losses since then."""
        self.busy_s = self.train_s = 0.0
        self.absent_busy_s: dict[str, float] = {}
        """Of lanes that had a part in the training before it was divided as it is now."""
        self.division: dict[str, Any] | None = None
        """How the work is divided at present, in a training that may change that under way."""
        self.asks = False
        """Whether it may change it once more."""
        self.untold: list[list[Segment]] = []
        """Segments of the steps since the last question."""
        if self.world > 1:
            with self.state.waits():
                self._join()
        if "model" in job:
            self._build()

    def _build(self) -> None:
        import numpy as np
        import torch

        from ..workload import build_model
        from .objective import Objective

        job = self.job
        # bf16: weights, gradients and what the optimizer keeps; no copy of them in fp32.
        kind = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(job.get("dtype", ""), torch.float32)
        model = build_model(job["model"], labels=job["labels"], seed=job["seed"], dropout=job.get("dropout", 0.0))
        self.model = model.to(self.device, kind)
        self.model.train()
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.flat = flat_gradients(self.weights)
        self.views = [weight.grad for weight in self.weights]
        self.optimizer = make_optimizer(job["optimizer"], self.weights, job["learning_rate"])
        with np.load(job["data"], allow_pickle=False) as arrays:
            # Kept on the device: feeding the lanes is not what is measured here.
            self.data = {name: torch.from_numpy(arrays[name]).to(self.device) for name in arrays.files}
        self.objective = Objective(self.data, job["global_batch"], job["model"].get("task", ""))

    @cached_property
    def backend(self) -> str:
        """What the group speaks through."""
        return backend_of(lane["torch_device"] for lane in self.job["lanes"])

    @property
    def wire(self) -> torch.device:
        """Where a tensor must lie to be sent to a peer, gathered or scattered.

        Gloo takes those of a GPU only in sums over all and broadcasts.
        """
        import torch

        return torch.device("cpu") if self.backend == "gloo" else self.device

    @cached_property
    def layers(self) -> list[Any]:
        """The model's layers one by one, where its family is known, as :func:`.slices.layers_of` has them."""
        from .slices import layers_of

        return layers_of(self.model)

    def group(self, ranks: Sequence[int]) -> Any:
        """The group of some ranks, made where it is new (then every member must ask for it); None for a single one."""
        key = tuple(sorted(ranks))
        if len(key) > 1 and key not in self.groups:
            import torch.distributed as dist

            with self.state.waits():
                self.groups[key] = dist.new_group(list(key), timeout=FOR_LONG)
        return self.groups.get(key)

    def _join(self) -> None:
        import torch.distributed as dist

        store = self._store()
        dist.init_process_group(self.backend, store=store, rank=self.rank, world_size=self.world, timeout=FOR_LONG)
        for ranks in sorted({tuple(task["ranks"]) for task in self.job["tasks"] if len(task.get("ranks", ())) > 1}):
            self.groups[ranks] = dist.new_group(list(ranks), timeout=FOR_LONG)

    def _store(self) -> Any:
        """Where the members find each other: a file, or for several machines the store that these share.

        Not a TCPStore of its own: that one listens on all interfaces, whatever host it is given.
        """
        import torch.distributed as dist

        place = self.job.get("store")
        if place is None:
            return dist.FileStore(str(self.folder / "rendezvous"), self.world)  # type: ignore[attr-defined]  # unlisted
        return join_store(place["host"], place["port"], place["prefix"])

    def meet(self) -> None:
        """Wait until every member is here; on several machines, agree on the time."""
        if self.world > 1:
            import torch.distributed as dist

            with self.state.waits():
                dist.barrier()
                if self.job.get("store") is not None:
                    self.device_clock.offset_s = agreed_offset_s(self.rank, self.world, self.device)

    def now(self) -> float:
        """Monotonic seconds, the first member's clock for all of them, once the device has done its work."""
        return self.device_clock.now()

    def mark(self) -> float:
        """A moment on the same clock, without waiting for the device: a time once it is settled (:mod:`.clocks`)."""
        return self.device_clock.mark()

    def settle(self, moments: Moments) -> Moments:
        """The same with times in place of moments: to be asked when what was timed is over."""
        return self.device_clock.settle(moments)

    def loss_of(self, loss: torch.Tensor) -> Any:
        """A loss as a number, or (as that would wait for a GPU) as a tensor that can be added to others."""
        return float(loss.detach()) if self.device.type == "cpu" else loss.detach().double()

    def slow_to(self, factor: float) -> None:
        """From now on, work so many times as slowly: by the quota, or where there is none to be had by :meth:`drag`."""
        if factor == self.pace:
            return
        by_quota = self.quota.slow(factor)
        if not by_quota and self.slow == 1.0:
            self.quota.slow(1.0)
        self.pace, self.slow = factor, 1.0 if by_quota else factor
        if factor != 1.0:
            self.slowed_by.add("quota" if by_quota else "loop")

    def drag(self, begin: float) -> None:
        """Where the member is slowed: keep the processor busy until what began then has taken so many times as long."""
        if self.slow > 1.0:
            end = begin + self.slow * (self.now() - begin)
            while self.now() < end:
                pass

    def clock(self) -> float:
        """Seconds that run only while this process has the processor: what a segment would take undisturbed.

        One thread: its processor time. Several: wall time less the time that they stood ready and were not run. What a
        quota takes away is the lane's own slowness, and no disturbance.
        """
        if self.lane["threads"] == 1:
            return time.process_time() + self.quota.throttled_s()
        threads: int = self.lane["threads"]
        return time.monotonic() - run_delay_s() / threads + self.quota.throttled_s()

    def disturbed(self, segment: Segment) -> bool:
        """Whether a segment took over 5 % longer than it would have, had nobody else used the processor.

        Only compute counts: a member that waits in a collective sleeps. A GPU's work shows in neither clock, and where
        lanes share a core, the clocks cannot tell the neighbour, who belongs there, from a stranger.
        """
        kind, _, start, end, own, _ = segment
        told = self.device.type == "cpu" and kind != "communication" and not self.lane["shares_core"]
        return told and end - start > WALL_OVER_CPU * own + CLOCK_S

    def step(
        self, sizes: list[int], start: int, group: Any, segments: list[Segment], batch_start: int | None = None
    ) -> float:
        """One training step of this member: its micro-batches from sample ``start``, the all-reduce, the optimizer.

        Gradients are of the mean loss over the *global* batch: each micro-batch adds its summed loss divided by what
        the global batch counts, and the all-reduce sums over the members, so unequal shares weigh as they should.

        Returns:
            This member's part of the mean loss.
        """
        loss = self.accumulate(sizes, start, group, segments, batch_start)
        begin, cpu = self.mark(), self.clock()
        self.optimizer.step()
        self.flat.zero_()
        self.drag(begin)
        segments.append(("optimizer", -1, begin, self.mark(), self.clock() - cpu, -1))
        say(self.signs.step(segments))
        return loss

    def accumulate(
        self, sizes: list[int], start: int, group: Any, segments: list[Segment], batch_start: int | None = None
    ) -> float:
        """Forward, backward and all-reduce of a step; the global batch begins with sample ``batch_start``."""
        import torch.distributed as dist

        for weight, view in zip(self.weights, self.views, strict=True):
            weight.grad = view  # a plan of several stages may have had the weights in between
        count = self.objective.count(start if batch_start is None else batch_start)
        loss_sum = 0.0
        for number, size in enumerate(sizes):
            loss_sum += self.micro_batch(start, size, number, segments, count)
            start += size
        begin = self.mark()
        if group is not None:
            say(self.signs.waits())
            with self.state.waits():
                dist.all_reduce(self.flat, group=group)
            segments.append(("communication", -1, begin, self.mark(), 0.0, -1))
        return loss_sum

    def micro_batch(self, start: int, size: int, number: int, segments: list[Segment], count: int) -> float:
        """Forward and backward of some samples, gradients added; a fallback lane does it ``repeat`` times, averaged."""
        repeat = self.lane["repeat"]
        total = 0.0
        for _ in range(repeat):
            begin, cpu0 = self.mark(), self.clock()
            loss = self.loss(start, size, count) / repeat
            self.drag(begin)
            middle, cpu1 = self.mark(), self.clock()
            loss.backward()
            self.drag(middle)
            end, cpu2 = self.mark(), self.clock()
            segments.append(("forward", number, begin, middle, cpu1 - cpu0, 0))
            segments.append(("backward", number, middle, end, cpu2 - cpu1, 0))
            total += self.loss_of(loss)
        return total

    def loss(self, start: int, size: int, count: int) -> torch.Tensor:
        """The part of some samples in the mean over ``count`` samples or tokens."""
        ids, mask = self.objective.inputs(start, size)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        return self.objective.loss(logits, self.objective.targets(start, size), count)


def run_delay_s() -> float:
    """Seconds that this process's threads have stood in the run queue; 0 where the system does not tell."""
    return sum(map(_delay_ns, Path("/proc/self/task").glob("*/schedstat"))) / 1e9


def _delay_ns(schedstat: Path) -> int:
    try:
        return int(schedstat.read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended since it was listed
        return 0


def flat_gradients(weights: list[torch.nn.Parameter]) -> torch.Tensor:
    """One buffer that holds all gradients; each parameter's ``grad`` becomes a view of it, so nothing is copied."""
    import torch

    flat = torch.zeros(sum(weight.numel() for weight in weights), dtype=weights[0].dtype, device=weights[0].device)
    offset = 0
    for weight in weights:
        weight.grad = flat[offset : offset + weight.numel()].view_as(weight)
        offset += weight.numel()
    return flat


def make_optimizer(name: str, weights: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The workload's optimizer, fused where torch has it."""
    kind, options = optimizer_kind(name)
    made: torch.optim.Optimizer = kind(weights, lr=learning_rate, **options)
    return made


OPTIMIZER_STATES = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "momentum": ("momentum_buffer",), "sgd": ()}
"""What an optimizer keeps of each weight, once it has made a step."""


def optimizer_kind(name: str) -> tuple[Any, dict[str, Any]]:
    """Class and options of a workload's optimizer."""
    import torch

    if name == "adamw":
        return torch.optim.AdamW, {"fused": True}
    return torch.optim.SGD, {"momentum": 0.9 if name == "momentum" else 0.0}


def group_max(member: Member, value: float) -> float:
    """The largest of the members' values, known to all of them."""
    import torch
    import torch.distributed as dist

    if member.world < 2:
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=member.device)
    with member.state.waits():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


def say(line: str) -> None:
    """Tell the driver something: signs of life, and how many tasks are done; an empty line is none."""
    if not line:
        return
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
