"""One member's part in data parallelism with sharded gradients (ZeRO 2) or weights (ZeRO 3): torch's fully_shard.

The module is a copy of its own, as sharding changes it in place. Its collectives are inside the passes: all-gathers in
the forward (and, with ZeRO 3, the backward) pass, the reduce-scatter in the backward pass of the last micro-batch; so
the passes' segments hold them, and the clocks cannot tell a disturbance from a wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ..workload import build_model
from .member import Segment, optimizer_kind, say
from .signs import State

if TYPE_CHECKING:
    from .member import Member


class Collective:
    """What the module's collectives have in common: memory of their own, and that the member waits in them."""

    def __init__(self, state: State) -> None:
        self.state = state

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Room for what is sent or received."""
        return torch.empty(*size, dtype=dtype, device=device)


class Gather(Collective):
    """The all-gather of weights."""

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> Any:
        """Gather, as the module would."""
        with self.state.waits():
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group, async_op=async_op)


class Scatter(Collective):
    """The reduce-scatter of gradients."""

    def __call__(  # torch's signature
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> Any:
        """Sum and scatter, as the module would."""
        with self.state.waits():
            return dist.reduce_scatter_tensor(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


class Fully:
    """A member that works on whole micro-batches with a part of every weight; made by all members together."""

    def __init__(self, member: Member, program: dict[str, Any], ranks: list[int]) -> None:
        self.member = member
        group = member.group(ranks)
        self.pipeline = next((each for each in program["pipelines"] if each["stages"][0]["rank"] == member.rank), None)
        self.weights = member.weights
        if self.pipeline is not None:
            self._build(DeviceMesh.from_group(group, member.device.type), keeps=program["zero"] == 2)

    def _build(self, mesh: DeviceMesh, *, keeps: bool) -> None:
        job = self.member.job
        model = build_model(job["model"], labels=job["labels"], seed=job["seed"], dropout=job.get("dropout", 0.0))
        model.load_state_dict(self.member.model.state_dict())
        model.to(self.member.device, self.member.weights[0].dtype).train()
        blocks = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
        for module in (*blocks, model):
            sharded = fully_shard(module, mesh=mesh, reshard_after_forward=not keeps)
            sharded.set_gradient_divide_factor(1.0)  # a sum: each loss is a part of the global batch's mean
            sharded.set_force_sum_reduction_for_comms(True)
            sharded.set_custom_all_gather(Gather(self.member.state))
            sharded.set_custom_reduce_scatter(Scatter(self.member.state))
        assert isinstance(model, FSDPModule)
        self.model, self.keeps = model, keeps
        self.parameters = [weight for weight in model.parameters() if weight.requires_grad]
        kind, options = optimizer_kind(job["optimizer"])
        self.optimizer = kind(self.parameters, lr=job["learning_rate"], **options)

    def gradient(self) -> torch.Tensor:
        """The whole gradient, gathered; all who take part must ask."""
        with self.member.state.waits():
            return torch.cat([weight.grad.full_tensor().flatten() for weight in self.parameters])  # type: ignore[union-attr]

    def hand_back(self) -> None:
        """As in :class:`.parts.Part`."""
        with torch.no_grad(), self.member.state.waits():
            for own, weight in zip(self.weights, self.parameters, strict=True):
                own.copy_(weight.full_tensor())  # type: ignore[attr-defined]  # a DTensor

    def clear(self) -> None:
        """Gradients are zero again."""
        self.optimizer.zero_grad(set_to_none=False)

    def accumulate(self, batch_start: int, segments: list[Segment]) -> float:
        """As in :class:`.parts.Part`."""
        assert self.pipeline is not None
        objective, sizes = self.member.objective, self.pipeline["sizes"]
        count, start, total = objective.count(batch_start), batch_start + self.pipeline["first"], 0.0
        for number, size in enumerate(sizes):
            last = number == len(sizes) - 1
            self.model.set_is_last_backward(last)
            self.model.set_requires_gradient_sync(last)
            if self.keeps:
                self.model.set_reshard_after_backward(last)
            begin = self.member.mark()
            ids, mask = objective.inputs(start, size)
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            loss = objective.loss(logits, objective.targets(start, size), count)
            self.member.drag(begin)
            middle = self.member.mark()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            self.member.drag(middle)
            end = self.member.mark()
            segments.append(("forward", number, begin, middle, middle - begin, 0))
            segments.append(("backward", number, middle, end, end - middle, 0))
            say(self.member.signs.waits())
            total += self.member.loss_of(loss)
            start += size
        return total

    def step(self, batch_start: int, segments: list[Segment]) -> float:
        """As in :class:`.parts.Part`."""
        loss, member = self.accumulate(batch_start, segments), self.member
        begin, cpu = member.mark(), member.clock()
        self.optimizer.step()
        self.clear()
        member.drag(begin)
        segments.append(("optimizer", -1, begin, member.mark(), member.clock() - cpu, -1))
        say(member.signs.step(segments))
        return loss
