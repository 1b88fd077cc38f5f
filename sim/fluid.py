"""Fluid: flows that share resources max-min fairly, the rates recomputed only where a change reaches."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

Uses = Sequence[tuple[int, float]]
"""(resource, weight) pairs: each byte of a flow crosses the resource ``weight`` times."""

FULL = 1 + 1e-9
"""Demand over capacity up to which a resource is taken to carry everything."""
SAME_MOMENT = 1e-12
"""Flows that end this close together, relative to the moment, end together: sums of delays differ by roundings."""


class _Flow:
    """A transfer under way; ``left`` bytes remained at ``since``."""

    __slots__ = ("cap", "end", "left", "number", "rate", "since", "token", "uses")

    def __init__(self, number: int, now: float, volume: float, uses: Uses, token: object) -> None:
        self.number = number
        self.token = token
        self.uses = uses
        self.left = volume
        self.since = now
        self.rate = 0.0
        self.cap = 0.0
        """Its rate when nobody else is there."""
        self.end = -1.0


class Fluid:
    """Max-min fair sharing by progressive filling (Bertsekas and Gallager 1992, section 6.5.2), event by event.

    Every flow has a rate; the smallest is as large as it can be, then the next, and so on, under
    ``sum(weight * rate) <= capacity`` of each resource. Rates change when flows start or end, and only those of flows
    that are joined to the change through resources that can run short. A resource whose flows at their lone rates
    would not exceed it joins nobody, so a flow without rivals costs no more than its own uses.

    Time goes forward: call :meth:`start` and :meth:`finish` in the order of their moments, and after them
    :meth:`next_end`, which settles all changes of one moment at once.
    """

    def __init__(self, capacities: Sequence[float]) -> None:
        self._capacities = capacities
        self._on: dict[int, dict[_Flow, float]] = {}
        self._demand: dict[int, float] = {}
        self._ends: list[tuple[float, int, _Flow]] = []
        self._changed: dict[int, None] = {}
        self._changed_at = 0.0
        self._started = 0
        self._alive = 0

    def start(self, now: float, volume: float, uses: Uses, token: object) -> float | None:
        """Start a flow of ``volume`` bytes; without volume or uses it ends at once.

        Args:
            now: seconds; not before the last call.
            volume: bytes.
            uses: resources that it crosses, each once, with a weight above 0.
            token: given back when the flow ends.

        Returns:
            When it ends, if no other flow has to give way to it; else ask :meth:`next_end`.
        """
        if self._changed:
            self._catch_up(now)
        self._changed_at = max(now, self._changed_at)
        flow = _Flow(self._started, now, volume, uses, token)
        self._started += 1
        self._alive += 1
        if volume <= 0 or not uses:
            flow.uses = ()
            self._schedule(flow, now)
            return now
        capacities = self._capacities
        flow.cap = min([capacities[resource] / weight for resource, weight in uses])
        if not self._enter(flow):
            flow.rate = flow.cap
            self._schedule(flow, now + volume / flow.rate)
            return flow.end
        return None

    def next_end(self, now: float) -> float | None:
        """The earliest moment at which a flow ends, if nothing else starts before; None without flows."""
        self._settle(max(now, self._changed_at))
        ends = self._ends
        while ends and ends[0][2].end != ends[0][0]:
            heapq.heappop(ends)
        return ends[0][0] if ends else None

    def finish(self, now: float) -> list[object]:
        """Remove the flows that are done at a moment; their tokens, in the order of their starts."""
        self._catch_up(now)
        done = []
        ends, horizon = self._ends, now + SAME_MOMENT * abs(now)
        while ends and ends[0][0] <= horizon:
            end, _, flow = heapq.heappop(ends)
            if flow.end == end:
                flow.end = -1.0
                done.append(flow)
                self._leave(flow, now)
        return [flow.token for flow in sorted(done, key=lambda flow: flow.number)]

    def rates(self, now: float) -> list[tuple[object, float]]:
        """Token and bytes per second of every flow that crosses a resource, in the order of their starts."""
        self._settle(max(now, self._changed_at))
        flows = {flow: None for each in self._on.values() for flow in each}
        return [(flow.token, flow.rate) for flow in sorted(flows, key=lambda flow: flow.number)]

    def _catch_up(self, now: float) -> None:
        """Changes of an earlier moment took effect then, not now."""
        if self._changed and now > self._changed_at:
            self._settle(self._changed_at)
        self._changed_at = max(now, self._changed_at)

    def _schedule(self, flow: _Flow, end: float) -> None:
        flow.end = end
        heapq.heappush(self._ends, (end, flow.number, flow))
        if len(self._ends) > 64 + 4 * self._alive:  # mostly superseded ends of flows whose rate changed
            self._ends = [entry for entry in self._ends if entry[2].end == entry[0]]
            heapq.heapify(self._ends)

    def _enter(self, flow: _Flow) -> bool:
        """Put a flow on its resources; whether it has rivals."""
        rivals, cap, all_on, demands = False, flow.cap, self._on, self._demand
        for resource, weight in flow.uses:
            if resource in all_on:
                all_on[resource][flow] = weight
                demand = demands[resource] = demands[resource] + weight * cap
            else:
                all_on[resource] = {flow: weight}
                demand = demands[resource] = weight * cap
            if demand > self._capacities[resource] * FULL:
                self._changed[resource] = None
                rivals = True
        return rivals

    def _leave(self, flow: _Flow, now: float) -> None:
        self._alive -= 1
        self._changed_at = max(now, self._changed_at)
        all_on, demands, changed = self._on, self._demand, self._changed
        for resource, weight in flow.uses:
            on, demand = all_on[resource], demands[resource]
            del on[flow]
            if not on:
                del all_on[resource], demands[resource]
                changed.pop(resource, None)
                continue
            if demand > self._capacities[resource] * FULL:
                changed[resource] = None
            demands[resource] = demand - weight * flow.cap

    def _short(self, resource: int) -> bool:
        """Whether the flows on a resource, each at its lone rate, would exceed it."""
        return self._demand[resource] > self._capacities[resource] * FULL

    def _settle(self, now: float) -> None:
        if not self._changed:
            return
        flows, resources = self._reached()
        self._changed.clear()
        for flow, rate in self._fill(flows, resources).items():
            if rate != flow.rate:
                flow.left = max(0.0, flow.left - flow.rate * (now - flow.since))
                flow.since, flow.rate = now, rate
                self._schedule(flow, now + flow.left / rate)

    def _reached(self) -> tuple[dict[_Flow, None], dict[int, None]]:
        """The flows that the changes reach, and the resources that may limit them."""
        flows: dict[_Flow, None] = {}
        limits = {resource: None for resource in self._changed if self._short(resource)}
        todo = list(self._changed)
        while todo:
            for flow in self._on[todo.pop()]:
                if flow not in flows:
                    flows[flow] = None
                    for resource, _ in flow.uses:
                        if resource not in limits and self._short(resource):
                            limits[resource] = None
                            todo.append(resource)
        return flows, limits

    def _fill(self, flows: dict[_Flow, None], resources: dict[int, None]) -> dict[_Flow, float]:
        """Raise all rates together; whoever meets a full resource, or its own cap, stops there."""
        room = {resource: self._capacities[resource] for resource in resources}
        load = {resource: sum(self._on[resource].values()) for resource in resources}
        unfilled = {resource: len(self._on[resource]) for resource in resources}
        levels = [(room[resource] / load[resource], resource) for resource in resources]
        heapq.heapify(levels)
        rates: dict[_Flow, float] = {}
        level = 0.0

        def stop(flow: _Flow) -> None:
            rates[flow] = level
            for resource, weight in flow.uses:
                if resource in room:
                    room[resource] -= weight * level
                    load[resource] -= weight
                    unfilled[resource] -= 1

        for first in sorted(flows, key=lambda flow: flow.cap):
            while first not in rates:
                while levels:  # a level only rises while others stop below it, so the heap's entries are lower bounds
                    known, resource = levels[0]
                    if not unfilled[resource]:
                        heapq.heappop(levels)
                    elif (now := max(level, room[resource] / load[resource])) > known:
                        heapq.heapreplace(levels, (now, resource))
                    else:
                        break
                if not levels or first.cap <= levels[0][0]:
                    level = first.cap
                    stop(first)
                else:
                    level, resource = levels[0]
                    for flow in self._on[resource]:
                        if flow not in rates:
                            stop(flow)
        return rates
