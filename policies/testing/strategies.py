"""Hypothesis strategies: the generator's choices drawn, and shrunk, by Hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import strategies as st

from ...sim.checking import validate
from ...sim.device import Cluster, Device
from ...sim.spec import Scenario
from ...sim.workload import Workload
from .._base import Choice, Parameter, Range, parameters
from .generator import make_cluster, make_device, make_scenario, make_workload
from .pasts import Past, make_past

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

T = TypeVar("T")


class _Drawn:
    """Choices of an example of Hypothesis."""

    def __init__(self, draw: DrawFn) -> None:
        self._draw = draw

    def pick(self, options: Sequence[T]) -> T:
        return self._draw(st.sampled_from(options))

    def whole(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def real(self, low: float, high: float) -> float:
        return self._draw(st.floats(low, high))


@st.composite
def workloads(draw: DrawFn) -> Workload:
    """Small models, chains and graphs, with batches of one, primes and powers of two, whole and in micro-batches."""
    return make_workload(_Drawn(draw))


@st.composite
def devices(draw: DrawFn, workload: Workload | None = None) -> Device:
    """Devices with memory from too little for the workload to plenty; of one that is given, measured ones too."""
    choices = _Drawn(draw)
    document = make_device(choices, workload or make_workload(choices), profiled=workload is not None)
    return validate(Device, document, "device")


@st.composite
def clusters(draw: DrawFn, workload: Workload | None = None) -> Cluster:
    """One to six devices on one to three nodes, some of them equal; of a workload that is given, measured ones too."""
    choices = _Drawn(draw)
    return make_cluster(choices, workload or make_workload(choices), profiled=workload is not None)


@st.composite
def scenarios(draw: DrawFn) -> Scenario:
    """Small valid scenarios; not all of them have a plan."""
    return make_scenario(_Drawn(draw))


@st.composite
def pasts(draw: DrawFn) -> Past:
    """How a plan ran before its policy is asked again."""
    return make_past(_Drawn(draw))


def policies(kind: type) -> SearchStrategy[Any]:
    """Policies of a class: the default, and any with searchable parameters within their ranges."""
    spaces = {each.name: _values(each) for each in parameters(kind) if each.space is not None}
    return st.one_of(st.builds(kind), st.builds(kind, **spaces)) if spaces else st.builds(kind)


def _values(parameter: Parameter) -> SearchStrategy[Any]:
    space = parameter.space
    if isinstance(space, Choice):
        return st.sampled_from(space.options)
    assert isinstance(space, Range), "only parameters with a range are drawn"
    if parameter.type is int:
        return st.integers(int(space.low), int(space.high))
    return st.floats(space.low, space.high)
