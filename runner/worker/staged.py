"""One member's part in a plan of several stages, pipelines or shards: its slices, its schedule, its sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from .member import Segment, flat_gradients, make_optimizer, optimizer_kind, say
from .slices import Slice

if TYPE_CHECKING:
    from .member import Member


class Held(NamedTuple):
    """The weights that the same ranks hold: their gradients are one message."""

    ranks: tuple[int, ...]
    weights: list[nn.Parameter]


def held_by(layers: Sequence[nn.Module], holders: Sequence[set[int]]) -> list[Held]:
    """All weights by who holds them, in the order of the layers: alike in every member, so that all sum in one order.

    A weight that two layers share (tied embeddings) is held by the holders of both: each adds what its own layer gave.
    """
    held: dict[int, set[int]] = {}
    weights: dict[int, nn.Parameter] = {}
    for layer, ranks in zip(layers, holders, strict=True):
        for weight in layer.parameters():
            if weight.requires_grad:
                weights[id(weight)] = weight
                held.setdefault(id(weight), set()).update(ranks)
    found: dict[tuple[int, ...], Held] = {}
    for key, weight in weights.items():
        peers = tuple(sorted(held[key]))
        found.setdefault(peers, Held(peers, [])).weights.append(weight)
    return list(found.values())


class Timed(PipelineStage):
    """A stage that tells when it computed, and whose peers stand in the order of the pipeline, not of their ranks."""

    def __init__(self, part: Staged, number: int) -> None:
        self.part, self.peers = part, part.peers
        super().__init__(
            part.slice(number),
            number,
            len(part.stages),
            part.member.device,
            input_args=part.handed_on(number),  # given, so that nothing is sent as a pickle to find them out
            output_args=part.handed_on(number + 1),
            group=part.member.group(part.peers),
        )
        self.group_rank = part.peers.index(part.member.rank)

    def _resolve_peer_global_rank(self, stage_idx: int) -> int:
        return self.peers[stage_idx % len(self.peers)]

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of a micro-batch, timed."""
        with self.part.timed("forward", fwd_chunk_id, self.stage_index):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """The backward pass of a micro-batch, timed."""
        with self.part.timed("backward", bwd_chunk_id, self.stage_index):
            return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)


class Sharded(ZeroRedundancyOptimizer):
    """ZeRO stage 1: each member updates its part of the weights, then all hand round what they have; that is timed.

    A member's weights go as one message. One each, as in the parent, takes several times as long; and the parent's own
    buckets become the weights' memory, which other plans in this process share.
    """

    part: Staged

    def _sync_params(self) -> None:
        begin = self.part.member.mark()
        with self.part.member.state.waits():
            self._hand_round()
        self.part.handed_s = (begin, self.part.member.mark())

    def _hand_round(self) -> None:
        """Everybody gets everybody's weights; one member's at a time, so that only its part is held twice."""
        group = self.process_group
        for rank, groups in enumerate(self._partition_parameters()):  # type: ignore[attr-defined]  # in no stub
            weights = [weight.detach() for each in groups for weight in each["params"]]
            if not weights:
                continue  # more members than weights
            if rank == self.rank:
                flat = torch.cat([weight.flatten() for weight in weights])
            else:
                flat = weights[0].new_empty(sum(weight.numel() for weight in weights))
            dist.broadcast(flat, dist.get_global_rank(group, rank), group=group)
            if rank != self.rank:
                parts = torch.split(flat, [weight.numel() for weight in weights])
                torch._foreach_copy_(weights, [part.view_as(own) for part, own in zip(parts, weights, strict=True)])


class Staged:
    """One member's part in a program (:mod:`..execution`); members without one make it too, as groups need them all.

    Gradients of weights with the same holders are one message after the backward pass; all sum in the same order.
    """

    def __init__(self, member: Member, program: dict[str, Any]) -> None:
        self.member, self.program = member, program
        self.layers = member.layers
        self.segments: list[Segment] = []
        self.handed_s: tuple[float, float] | None = None
        self.count = 1
        pipelines = program["pipelines"]
        for pipeline in pipelines:
            member.group(_peers(pipeline))
        held = held_by(self.layers, _holders(pipelines, len(self.layers)))
        for each in held:
            member.group(each.ranks)
        self.pipeline = next((each for each in pipelines if member.rank in _peers(each)), None)
        self.shared = [each for each in held if member.rank in each.ranks]
        if self.pipeline is not None:
            self._build()

    def _build(self) -> None:
        member = self.member
        self.peers = _peers(self.pipeline)
        self.own = [number for number, each in enumerate(self.stages) if each["rank"] == member.rank]
        self.weights = [weight for each in self.shared for weight in each.weights]
        self.flat = flat_gradients(self.weights)
        self.views = [weight.grad for weight in self.weights]
        self.optimizer = self._optimizer()
        self.schedule = self._schedule() if len(self.stages) > 1 else None

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stages of the member's pipeline."""
        assert self.pipeline is not None
        stages: list[dict[str, Any]] = self.pipeline["stages"]
        return stages

    def slice(self, number: int) -> Slice:
        """The layers of a stage."""
        stage = self.stages[number]
        layers = self.layers[stage["first"] : stage["last"]]
        return Slice(layers, recompute=stage["recompute"], last=stage["last"] == len(self.layers))

    def handed_on(self, number: int) -> Tensor:
        """A tensor like the one that a stage takes from the one before: ids, hidden states, or (after all) logits."""
        assert self.pipeline is not None
        size, tokens = self.pipeline["sizes"][0], self.member.data["ids"].shape[1]
        if number == 0:
            return torch.zeros(size, tokens, dtype=torch.long, device=self.member.device)
        config: Any = self.member.model.config
        shape: tuple[int, ...] = (tokens, config.hidden_size)
        if number == len(self.stages):
            shape = (tokens, config.vocab_size) if self.member.objective.causal else (config.num_labels,)
        kind = self.member.weights[0].dtype
        return torch.zeros(size, *shape, dtype=kind, device=self.member.device, requires_grad=True)

    def _optimizer(self) -> torch.optim.Optimizer:
        member = self.member
        name, rate = member.job["optimizer"], member.job["learning_rate"]
        group = member.group(self.shared[0].ranks)
        if not self.program["zero"] or group is None:
            return make_optimizer(name, self.weights, rate)
        kind, options = optimizer_kind(name)
        sharded = Sharded(self.weights, kind, process_group=group, lr=rate, **options)
        sharded.part = self
        return sharded

    def _schedule(self) -> Any:
        assert self.pipeline is not None
        stages = [Timed(self, number) for number in self.own]
        count, kind = len(self.pipeline["sizes"]), self.program["schedule"]
        options: dict[str, Any] = {"loss_fn": self._loss, "scale_grads": False}
        if kind == "interleaved":
            return ScheduleInterleaved1F1B(list(stages), count, **options)
        return {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[kind](stages[0], count, **options)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of a micro-batch, whose time belongs to the forward pass just before."""
        cpu = self.member.clock()
        with self.member.state.works():
            loss = self.member.objective.loss(logits, targets, self.count)
        kind, number, begin, _, own, stage = self.segments[-1]
        self.segments[-1] = (kind, number, begin, self.member.mark(), own + self.member.clock() - cpu, stage)
        return loss

    @contextmanager
    def timed(self, kind: str, number: int, stage: int) -> Iterator[None]:
        """Add a segment for what is done inside."""
        begin, cpu = self.member.mark(), self.member.clock()
        with self.member.state.works():
            yield
            self.member.drag(begin)
        self.segments.append((kind, number, begin, self.member.mark(), self.member.clock() - cpu, stage))
        say(self.member.signs.waits())

    def gradient(self) -> Tensor:
        """As in :class:`.parts.Part`."""
        return self.flat

    def clear(self) -> None:
        """As in :class:`.parts.Part`."""
        self.flat.zero_()

    def accumulate(self, batch_start: int, segments: list[Segment]) -> float:
        """Forward and backward of the member's part of a global batch; gradients are summed over their holders.

        Args:
            batch_start: number of the global batch's first sample.
            segments: gets what was done, and when.

        Returns:
            The loss of what this member has the last stage of.
        """
        assert self.pipeline is not None
        member, self.segments = self.member, segments
        for weight, view in zip(self.weights, self.views, strict=True):
            weight.grad = view  # another plan may have had the weights in between
        self.count = member.objective.count(batch_start)
        start = batch_start + self.pipeline["first"]
        loss = self._alone(start) if self.schedule is None else self._piped(start)
        begin = member.mark()
        shared = self._sum()
        if shared:
            segments.append(("communication", -1, begin, member.mark(), 0.0, -1))
        return loss

    def step(self, batch_start: int, segments: list[Segment]) -> float:
        """One training step; arguments and answer as in :meth:`accumulate`."""
        loss = self.accumulate(batch_start, segments)
        member = self.member
        begin, cpu = member.mark(), member.clock()
        self.optimizer.step()
        self.flat.zero_()
        member.drag(begin)
        end = member.mark()
        if self.handed_s is None:
            segments.append(("optimizer", -1, begin, end, member.clock() - cpu, -1))
        else:
            segments.append(("optimizer", -1, begin, self.handed_s[0], self.handed_s[0] - begin, -1))
            segments.append(("communication", -2, *self.handed_s, 0.0, -1))
        say(member.signs.step(segments))
        return loss

    def hand_back(self) -> None:
        """As in :class:`.parts.Part`: it trains that model."""

    def _alone(self, start: int) -> float:
        """All micro-batches through a pipeline of one stage."""
        assert self.pipeline is not None
        module, total = self.slice(0), 0.0
        for number, size in enumerate(self.pipeline["sizes"]):
            with self.timed("forward", number, 0):
                logits = module(*self.member.objective.inputs(start, size))
                loss = self.member.objective.loss(logits, self.member.objective.targets(start, size), self.count)
            with self.timed("backward", number, 0):
                loss.backward()  # type: ignore[no-untyped-call]  # torch's
            total += self.member.loss_of(loss)
            start += size
        return total

    def _piped(self, start: int) -> float:
        """All micro-batches through the member's stages, as torch's schedule has it."""
        assert self.pipeline is not None
        size, objective = sum(self.pipeline["sizes"]), self.member.objective
        ids, mask = objective.inputs(start, size)
        losses: list[Tensor] = []
        holds_last = len(self.stages) - 1 in self.own
        targets = objective.targets(start, size) if holds_last else None
        first = (ids,) if 0 in self.own else ()
        assert self.schedule is not None
        with self.member.state.waits():  # for neighbours, but for what is timed
            self.schedule.step(*first, mask=mask, target=targets, losses=losses, return_outputs=False)
        return sum(map(self.member.loss_of, losses), 0.0)

    def _sum(self) -> bool:
        """Sum the gradients over the holders; whether there was anybody to sum with."""
        offset, shared = 0, False
        for each in self.shared:
            size = sum(weight.numel() for weight in each.weights)
            group = self.member.group(each.ranks)
            if group is not None:
                with self.member.state.waits():
                    dist.all_reduce(self.flat[offset : offset + size], group=group)
                shared = True
            offset += size
        return shared


def _peers(pipeline: Any) -> list[int]:
    """Ranks of a pipeline in the order of their first stages."""
    return list(dict.fromkeys(stage["rank"] for stage in pipeline["stages"]))


def holding(member: Member, program: dict[str, Any]) -> list[set[int]]:
    """Per weight of the model, in the member's order, the ranks that hold it."""
    held = held_by(member.layers, _holders(program["pipelines"], len(member.layers)))
    ranks = {id(weight): set(each.ranks) for each in held for weight in each.weights}
    return [ranks[id(weight)] for weight in member.weights]


def _holders(pipelines: Sequence[Any], layers: int) -> list[set[int]]:
    """Per layer, the ranks that hold it."""
    held: list[set[int]] = [set() for _ in range(layers)]
    for pipeline in pipelines:
        for stage in pipeline["stages"]:
            for ranks in held[stage["first"] : min(stage["last"], layers)]:
                ranks.add(stage["rank"])
    return held
