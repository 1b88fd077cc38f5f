"""Placement: the layers of a graph on devices, one pipeline whose devices may recur in any order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from ..sim import cost
from ..sim.plan import Infeasible, Pipeline, Plan, Replica, Stage, micro_batches
from ..sim.view import DeviceView, View
from ._base import Choice, canonical
from .graphs import placed
from .list_schedules import earliest_finish, earliest_start, topological_fill


@dataclass(frozen=True, kw_only=True)
class PlaceSingle:
    """Put the whole model on one device: of those that it fits on, the one that is fastest with it."""

    name: ClassVar[str] = "place-single"
    source: ClassVar[str] = "the baseline of every paper on placement (Mirhoseini et al. 2017, section 4.1)"
    rigid: ClassVar[bool] = True

    def allocate(self, view: View) -> Plan:
        """The plan of one device; where the batch does not fit at once, in as few micro-batches as do.

        Raises:
            Infeasible: the model fits on no device.
        """
        view = canonical(view)
        sizes = {device: _sizes(view, device) for device in view.devices}
        fitting = [device for device in view.devices if sizes[device]]
        if not fitting:
            problem = "fits on no single device"
            raise Infeasible("workload.model", problem, "use a device with more memory, or divide the model")
        best = min(fitting, key=lambda device: _step_s(device, sizes[device]))
        stage = Stage(first=0, last=len(view.workload.layers), replicas=[Replica(devices=[best.name])])
        return Plan(pipelines=[Pipeline(stages=[stage], micro_batches=sizes[best])])


def _sizes(view: View, device: DeviceView) -> list[int]:
    """Micro-batches in which a device can do the whole batch; none where not even one sample fits."""
    fits = cost.largest_micro_batch(view.workload, view.cluster.by_name[device.name])
    limit = min(fits, view.workload.max_micro_batch or fits)
    return micro_batches(view.global_batch, limit) if limit else []


def _step_s(device: DeviceView, sizes: list[int]) -> float:
    return sum(sizes.count(size) * device.cost.compute_s(size) for size in set(sizes)) + device.cost.optimizer_s


@dataclass(frozen=True, kw_only=True)
class Topological:
    """Fill device after device with layers in topological order, each up to a cap on its memory (m-TOPO)."""

    name: ClassVar[str] = "m-topo"
    source: ClassVar[str] = "Baechi (Jeon et al. 2020, arXiv 2301.08695; github.com/beomyeol/baechi placer/m_topo.py)"
    rigid: ClassVar[bool] = True

    balanced: Annotated[bool, Choice(True, False)] = True
    """Whether the cap is an equal share of all bytes plus the largest layer; else a device's memory."""

    def allocate(self, view: View) -> Plan:
        """The placement; devices are filled in the order of their speeds.

        Raises:
            Infeasible: a layer comes after the last device is full.
        """
        return placed(view, partial(topological_fill, balanced=self.balanced))


@dataclass(frozen=True, kw_only=True)
class EarliestTask:
    """Place the layer that can begin first on the device where it does, as long as that has memory (m-ETF)."""

    name: ClassVar[str] = "m-etf"
    source: ClassVar[str] = "Baechi (Jeon et al. 2020, arXiv 2301.08695), after ETF (Hwang et al. 1989)"
    rigid: ClassVar[bool] = True

    def allocate(self, view: View) -> Plan:
        """The placement, and the order in which devices take their layers.

        Raises:
            Infeasible: a layer fits nowhere beside those that were placed before it.
        """
        return placed(view, earliest_start)


@dataclass(frozen=True, kw_only=True)
class EarliestFinish:
    """Place layers by the length of the way behind them, each where it ends first, in gaps too (HEFT)."""

    name: ClassVar[str] = "heft"
    source: ClassVar[str] = "Topcuoglu, Hariri, Wu 2002, Performance-effective and low-complexity task scheduling"
    rigid: ClassVar[bool] = True

    def allocate(self, view: View) -> Plan:
        """The placement, and the order in which devices take their layers.

        Raises:
            Infeasible: a layer fits nowhere beside those that were placed before it.
        """
        return placed(view, earliest_finish)
