"""The regular hybrid plan: tensor x data x pipeline parallelism in equal parts, as Megatron-LM lays it out."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sim.plan import Infeasible, Pipeline, Plan, PlanError, Replica, Stage
from ..sim.spec import Scenario
from ..sim.view import View
from ..sim.workload import Workload
from ._base import Choice, Range
from ._neighbours import neighbours


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Divide regularly: so many pipelines of so many stages on groups of so many devices, all in equal parts.

    Devices are taken machine by machine and switch by switch (where they differ: the fastest first). Tensor-parallel
    groups are formed first, of neighbours within a machine as long as it has enough; then come the groups that hold
    the same stage (data parallel), and stages are furthest apart: what communicates most is closest together. Stages
    have as equal FLOPs as contiguous cuts allow, pipelines equal samples, the remainder one each from the first.
    """

    name: ClassVar[str] = "grid"
    source: ClassVar[str] = "Megatron-LM's order of ranks, tensor - data - pipeline (Narayanan et al. 2021, section 3)"
    rigid: ClassVar[bool] = True

    # Not searched: more pipelines than are left do not exist, and fewer leave devices idle.
    data: int = 0
    """Pipelines side by side; 0: as many as the devices make."""
    pipeline: Annotated[int, Range(1, 256, log=True)] = 1
    tensor: Annotated[int, Range(1, 256, log=True)] = 1
    micro_batch: Annotated[int, Range(1, 65_536, log=True)] = 1
    """Largest micro-batch; the workload's own limit holds too."""
    schedule: Annotated[str, Choice("1f1b", "gpipe", "interleaved")] = "1f1b"
    chunks: Annotated[int, Range(1, 32, log=True)] = 1
    """Stages per device, with the interleaved schedule (which needs 2 or more)."""
    recompute: Annotated[str, Choice("none", "selective", "full")] = "none"
    zero: Annotated[int, Choice(0, 1, 2, 3)] = 0
    sequence_parallel: Annotated[bool, Choice(False, True)] = False
    # Not searched: averaging weights less often is always faster by the clock, and another training.
    sync_every: int = 1
    """Optimizer steps from one synchronisation to the next (local SGD)."""

    def allocate(self, view: View) -> Plan:
        """The grid over the view's devices.

        Raises:
            Infeasible: a degree that devices, layers, batch or memory do not allow.
        """
        data = self._pipelines(len(view.devices))
        self._check(view.workload, data)
        groups = list(_groups(view, self.tensor))
        stages = self._stages(view.workload)
        pipelines = [
            Pipeline(
                stages=self._placed(stages, groups[number : data * self.pipeline : data]),
                micro_batches=self._micro_batches(samples, view.workload.max_micro_batch),
            )
            for number, samples in enumerate(_evenly(view.global_batch, data))
        ]
        # A pipeline of one stage has no schedule: left at the plan's default, it equals other policies' plans.
        kind = {"schedule": self.schedule} if self.pipeline > 1 else {}
        plan = Plan.model_validate(
            {"pipelines": pipelines, "zero": self.zero, "sync_every": self._whole("sync_every"), **kind}
        )
        return _judged(plan, view)

    def _whole(self, name: str) -> int:
        """A degree, which is at least 1."""
        value: int = getattr(self, name)
        if value < 1:
            raise _wrong(name, f"is {value}", "at least 1")
        return value

    def _pipelines(self, devices: int) -> int:
        """The number of pipelines that so many devices make, or as many as are wanted."""
        if self.data < 0:
            raise _wrong("data", f"is {self.data}", "at least 1, or 0 for all that the devices make")
        most = devices // (self._whole("pipeline") * self._whole("tensor"))
        if self.data <= most and most:
            return self.data or most
        needed = max(self.data, 1) * self.pipeline * self.tensor
        degrees = f"{max(self.data, 1)} x {self.pipeline} x {self.tensor}"
        problem = f"data x pipeline x tensor = {degrees} are {needed} devices, there are {devices}"
        raise _wrong("data" if self.data else "pipeline", problem, "use smaller degrees")

    def _check(self, workload: Workload, data: int) -> None:
        """Whether model and batch can be divided so often."""
        stages, layers = self.pipeline * self._whole("chunks"), len(workload.layers)
        if (self.schedule == "interleaved") != (self.chunks > 1) or (self.chunks > 1 and self.pipeline == 1):
            problem = f"is {self.chunks}, the schedule {self.schedule}, with a pipeline of {self.pipeline}"
            raise _wrong("chunks", problem, "interleaved takes 2 or more and several stages, others 1")
        if stages > layers:
            raise _wrong("pipeline", f"makes {stages} stages, the model has {layers} layers", "use fewer stages")
        whole = workload.indivisible(0, layers, self.tensor) if self.tensor > 1 else None
        if whole is not None:
            parts = f"has {whole.tensor.divisor} parts" if whole.tensor else "cannot be divided"
            raise _wrong("tensor", f"is {self.tensor}, and layer {whole.name!r} {parts}", "use a divisor")
        if workload.global_batch < data:
            problem = f"is {data}, and there are {workload.global_batch} samples"
            raise _wrong("data", problem, "use fewer pipelines")

    def _stages(self, workload: Workload) -> list[tuple[int, int]]:
        tokens = workload.sequence_length
        flops = [round(layer.forward_flops(tokens) + layer.backward_flops(tokens)) for layer in workload.layers]
        return list(itertools.pairwise(equal_cuts(flops, self.pipeline * self.chunks)))

    def _placed(self, stages: Sequence[tuple[int, int]], groups: Sequence[list[str]]) -> list[Stage]:
        """The stages of one pipeline on its groups of devices, round and round where there are more stages."""
        return [
            Stage.model_validate(
                {
                    "first": first,
                    "last": last,
                    "replicas": [Replica(devices=group)],
                    "recompute": self.recompute,
                    "sequence_parallel": self.sequence_parallel and self.tensor > 1,
                }
            )
            for (first, last), group in zip(stages, itertools.cycle(groups), strict=False)
        ]

    def _micro_batches(self, samples: int, limit: int | None) -> list[int]:
        """The fewest micro-batches within the limits; the interleaved schedule wants a multiple of the stages."""
        largest = min(self._whole("micro_batch"), limit or samples)
        count = -(-samples // largest)
        if self.schedule == "interleaved":
            count = -(-count // self.pipeline) * self.pipeline
        if count > samples:
            problem = f"is {self.pipeline}, and a pipeline has {samples} samples a step"
            raise _wrong("pipeline", problem, "interleaved takes a micro-batch for each of the devices")
        return _evenly(samples, count)


def equal_cuts(work: Sequence[int], parts: int) -> list[int]:
    """Bounds of ``parts`` runs, none empty, that cover the work in order: the largest is as small as can be.

    Each bound is then as close to an equal share of what is left as that allows.

    Args:
        work: of each entry, not negative; whole numbers, so that sums are exact.
        parts: at most as many as there are entries.
    """
    sums = [0, *itertools.accumulate(work)]
    low, high = max(work), sums[-1]
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _starts(sums, parts, middle)[0] == 0 else (middle + 1, high)
    starts, bounds = _starts(sums, parts, high), [0]
    for part in range(1, parts):
        begin = bounds[-1]
        end = min(bisect.bisect_right(sums, sums[begin] + high) - 1, len(work) - (parts - part))
        choices = range(max(begin + 1, starts[part]), end + 1)
        share = (sums[-1] - sums[begin]) / (parts - part + 1)
        bounds.append(min(choices, key=lambda bound: abs(sums[bound] - sums[begin] - share)))
    return [*bounds, len(work)]


def _starts(sums: Sequence[int], parts: int, most: int) -> list[int]:
    """Per part, the earliest bound after which the rest fits into the parts that are left, of at most ``most`` each."""
    bounds = [len(sums) - 1]
    for part in reversed(range(parts)):
        bounds.append(max(part, bisect.bisect_left(sums, sums[bounds[-1]] - most)))
    return bounds[::-1]


def _evenly(total: int, parts: int) -> list[int]:
    """A total in parts that differ by at most one, the larger ones first."""
    size, over = divmod(total, parts)
    return [size + 1] * over + [size] * (parts - over)


def _groups(view: View, degree: int) -> Iterator[list[str]]:
    """Groups of so many devices: within machines first, then of what machines have left."""
    rest: list[str] = []
    for names in neighbours(view):
        whole = len(names) // degree * degree
        yield from (names[start : start + degree] for start in range(0, whole, degree))
        rest += names[whole:]
    yield from (rest[start : start + degree] for start in range(0, len(rest) - degree + 1, degree))


def _judged(plan: Plan, view: View) -> Plan:
    """The plan, if it is valid.

    Raises:
        Infeasible: it is not; the first violation says why.
    """
    try:
        plan.check(Scenario(name="grid", cluster=view.cluster, workload=view.workload))
    except PlanError as error:
        raise Infeasible(error.path, error.problem, error.mend) from error
    return plan


def _wrong(name: str, problem: str, mend: str) -> Infeasible:
    return Infeasible(f"policy.grid.{name}", problem, mend)
