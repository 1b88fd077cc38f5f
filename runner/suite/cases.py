"""Cases: a suite is data, a file of clusters, workloads and the plans to measure on them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ...policies import make_policy, policy_from_text
from ...results.errors import InputError
from ...results.record import digest
from ...sim.checking import validate
from ...sim.cost import MODEL_VERSION
from ...sim.spec import Scenario, parse_file, parse_toml
from ...sim.view import Fixed, Policy, View, allocate, describe
from ...sim.workload import Name, Spec
from ..entries import distinct_entries
from ..protocol import PROTOCOL_VERSION

SHIPPED = ("full", "small")
AUTO = "auto"
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}$")]
"""A name that is a folder's too, and no way out of the one that it is in."""


class Case(Spec):
    """One replay: on which lanes, of which workload, which plans."""

    name: FolderName
    family: Name
    """Of the model: figures are also given by family."""
    cluster: Name = AUTO
    """One of the suite's clusters; ``auto``: the lanes that this host offers."""
    workload: dict[str, Any]
    policies: list[Name] = Field(default_factory=list)
    """As ``--policy`` takes them."""
    moved: list[int] = Field(default_factory=list)
    """Plans beside the best split: so many samples go from the lane that has most to the one that has fewest."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Further tables of the scenario: ``replay``, ``calibration``, ``training``."""


class Suite(Spec):
    """Cases, and the clusters that they name."""

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    name: FolderName
    clusters: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Declared lanes and their hosts, as a scenario's ``cluster`` has them."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Tables of every case's scenario, where it has none of its own."""
    cases: Annotated[list[Case], Field(min_length=1, max_length=1000)]

    def document(self, case: Case) -> dict[str, Any]:
        """The scenario of a case."""
        cluster = self.clusters.get(case.cluster, {"lanes": AUTO})
        own = {**self.settings, **case.settings}
        return {"name": case.name, "cluster": cluster, "workload": case.workload, **own}

    def digest(self, case: Case, seed: int) -> str:
        """Digest of all that decides a case's plans and predictions but for the host."""
        return digest([self.document(case), case.policies, case.moved, seed, MODEL_VERSION, PROTOCOL_VERSION])[:16]


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or a file.

    Raises:
        InputError: no such suite, a mistake in it, a case that names a cluster that is not there, two of one name.
    """
    if name in SHIPPED:
        document = parse_toml(resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"), name)
    elif Path(name).is_file():
        document = parse_file(Path(name))
    else:
        raise InputError(name, "no such suite", f"give a file, or one of {', '.join(SHIPPED)}")
    suite = validate(Suite, document, name)
    names = [case.name for case in suite.cases]
    for number, case in enumerate(suite.cases):
        if names.count(case.name) > 1:
            raise InputError(f"cases.{number}.name", f"{case.name!r} is used twice", "give each case its own name")
        if case.cluster not in (AUTO, *suite.clusters):
            known = ", ".join((AUTO, *suite.clusters))
            raise InputError(f"cases.{number}.cluster", f"{case.cluster!r} is no cluster here", f"one of {known}")
        if not case.policies and not case.moved:
            raise InputError(f"cases.{number}", "has no plans", "add policies or moved")
    return suite


def runnable(scenario: Scenario, case: Case) -> tuple[list[Policy], dict[str, str]]:
    """The policies of a case whose plans this host can run, and of the others the reason why not.

    Raises:
        InputError: a policy's text is wrong: a mistake in the suite, and not in the host.
    """
    named = {text: policy_from_text(text) for text in case.policies}
    splits, skipped = moved_splits(scenario, case.moved)
    found: list[Policy] = []
    for label, policy in {**named, **splits}.items():
        try:
            distinct_entries(scenario, [policy])
        except InputError as reason:
            skipped[label] = str(reason)
        else:
            found.append(policy)
    return found, skipped


def moved_splits(scenario: Scenario, moved: list[int]) -> tuple[dict[str, Policy], dict[str, str]]:
    """Plans beside the best split, by the exact one that the tables give; and why some are none."""
    if not moved:
        return {}, {}
    view = View.of(scenario)
    best = allocate(make_policy("makespan"), view, scenario).split()
    samples = [best.get(device.name, 0) for device in view.devices]
    most, least = samples.index(max(samples)), samples.index(min(samples))
    found: dict[str, Policy] = {}
    skipped: dict[str, str] = {}
    for count in moved:
        own = list(samples)
        own[most], own[least] = own[most] - count, own[least] + count
        if most == least or min(own) < 0:
            skipped[f"moved {count}"] = f"the best split is {'+'.join(map(str, samples))}"
            continue
        plan = view.plan(own)
        record = describe(Fixed(plan)).model_copy(update={"name": "split", "parameters": {"moved": count}})
        found[f"moved {count}"] = Fixed(plan, record)
    return found, skipped
