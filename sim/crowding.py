"""Crowding: how much slower messages are for those that pipelines in lock step send over the same links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .line import Way
from .network import Network
from .plan import Pipeline, Plan
from .workload import Workload


@dataclass(frozen=True, slots=True)
class Lane:
    """What a message crosses, and how many times as long its bytes take there as they would alone."""

    factor: float
    links: tuple[int, ...]


class Crowds:
    """The messages of a plan's pipelines: like pipelines send theirs at the same moments, and share what they cross.

    Rank i of a tensor-parallel group sends its part to rank i of the next, all at once; and of all pipelines, those
    messages meet that go between stages of the same numbers in the same direction.
    """

    def __init__(self, network: Network, workload: Workload) -> None:
        self.network, self.workload = network, workload
        self._routes: dict[tuple[str, str], tuple[int, ...]] = {}

    def lanes(self, plan: Plan) -> list[dict[Way, Lane]]:
        """Per pipeline, by direction and stages, the lane of its messages."""
        crossings = [self._crossings(pipeline) for pipeline in plan.pipelines]
        together: Counter[tuple[Way, int]] = Counter()
        for each in crossings:
            for way, links in each.items():
                for link, count in links.items():
                    together[way, link] += count
        return [
            {way: self._lane(links, [together[way, link] for link in links]) for way, links in each.items()}
            for each in crossings
        ]

    def route(self, source: str, target: str) -> tuple[int, ...]:
        """The links that a message crosses; none to itself."""
        found = self._routes.get((source, target))
        if found is None:
            ports = self.network.topology.ports
            found = () if source == target else self.network.topology.route(ports[source], ports[target])[1]
            self._routes[source, target] = found
        return found

    def _crossings(self, pipeline: Pipeline) -> dict[Way, Counter[int]]:
        """Of each message, how often it crosses which link."""
        found: dict[Way, Counter[int]] = {}
        for edge in self.workload.stage_edges(tuple(stage.first for stage in pipeline.stages)):
            groups = [pipeline.stages[number].replicas[0].devices for number in (edge.source, edge.target)]
            for backward in (False, True):
                here, there = groups[::-1] if backward else groups
                links = Counter(link for pair in paired(here, there) for link in self.route(*pair))
                way = (True, edge.target, edge.source) if backward else (False, edge.source, edge.target)
                found[way] = links
        return found

    def _lane(self, links: Counter[int], together: Sequence[int]) -> Lane:
        capacities = self.network.capacities
        alone = max((1 / capacities[link] for link in links), default=1.0)
        crowded = max((n / capacities[link] for link, n in zip(links, together, strict=True)), default=1.0)
        return Lane(crowded / alone, tuple(links))


def paired(here: Sequence[str], there: Sequence[str]) -> list[tuple[str, str]]:
    """Who sends to whom between two groups: rank i to rank i; of the smaller group, several times."""
    pairs = max(len(here), len(there))
    return [(here[rank * len(here) // pairs], there[rank * len(there) // pairs]) for rank in range(pairs)]
