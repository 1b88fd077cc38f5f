"""Clocks of a device: moments that its queue passes, read together, so that nothing waits while steps are timed.

A GPU works behind its process: to ask the time at a segment's edge means to wait until the queue is empty, which is no
step as anybody trains. There an edge leaves an event in the queue, and a moment stands for it: the process's own time
at which it was left, which is never twice the same. When a block is over, the queue is waited for once and every moment
is replaced by the time at which the device passed its event. A processor needs none of that: its moments are times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

Moments = TypeVar("Moments")


class Event(Protocol):
    """What lies in a device's queue."""

    def elapsed_time(self, other: Any) -> float:
        """Milliseconds from when the device passed this one until it passed the other."""
        ...


class Queue(Protocol):
    """A device whose work is queued: the one seam between the clock and CUDA."""

    def record(self) -> Event:
        """Leave an event behind all work so far."""
        ...

    def wait(self) -> None:
        """Until all work is done."""
        ...


class CudaQueue:
    """The current stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self) -> Event:
        """As in :class:`Queue`."""
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        """As in :class:`Queue`."""
        import torch

        torch.cuda.synchronize(self.device)


class DeviceClock:
    """Moments of a process's monotonic clock; with a queue, of when the device got there."""

    def __init__(self, queue: Queue | None = None, host: Callable[[], float] = time.monotonic) -> None:
        self.queue, self.host = queue, host
        self.offset_s = 0.0
        """What must be added to this machine's clock to have the first member's."""
        self._left: dict[float, Event] = {}
        self._start: tuple[float, Event] | None = None
        self._last = -math.inf

    def now(self) -> float:
        """The time in seconds, once the device has done its work."""
        if self.queue is not None:
            self.queue.wait()
        return self.host() + self.offset_s

    def mark(self) -> float:
        """A moment in seconds; where there is a queue it stands for an event until :meth:`settle` was asked."""
        if self.queue is None:
            return self.host() + self.offset_s
        if self._start is None:
            self._anchor()
        moment = max(self.host() + self.offset_s, math.nextafter(self._last, math.inf))
        self._last = moment
        self._left[moment] = self.queue.record()
        return moment

    def settle(self, moments: Moments) -> Moments:
        """The same lists and tuples, with the time of its event for every moment; then the events are forgotten.

        Other numbers stay as they are: no duration or count equals a moment of a clock that runs since the host began.
        """
        if self.queue is None or self._start is None:
            return moments
        self.queue.wait()
        start_s, first = self._start
        times = {moment: start_s + first.elapsed_time(event) / 1e3 for moment, event in self._left.items()}
        self._left, self._start = {}, None  # anchored anew: elapsed times are of single precision
        settled: Moments = _replaced(moments, times)
        return settled

    def _anchor(self) -> None:
        """An event and the time of it: the queue is empty before and after."""
        assert self.queue is not None
        self.queue.wait()
        event = self.queue.record()
        self.queue.wait()
        self._start = (self.host() + self.offset_s, event)


def _replaced(value: Any, times: dict[float, float]) -> Any:
    if isinstance(value, float):
        return times.get(value, value)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, times) for each in value)
    return value


def clock_of(device: torch.device) -> DeviceClock:
    """The clock of a member's device."""
    return DeviceClock(CudaQueue(device) if device.type == "cuda" else None)


def memory_of(device: torch.device) -> Callable[[], int]:
    """What tells the bytes that a member has in use: the GPU's where it works on one, else the process's."""
    from .signs import resident_bytes

    if device.type != "cuda":
        return resident_bytes

    def allocated() -> int:
        import torch

        return int(torch.cuda.memory_allocated(device))

    return allocated
