"""train(): fine-tune the scenario's classifier on the lanes as a plan divides it, and evaluate it on held-out texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..results.errors import InputError
from ..sim.disturbances import refuse_events
from ..sim.engine import simulate
from ..sim.plan import Plan
from ..sim.spec import Scenario
from ..sim.view import Fixed, Policy, View, allocate, describe
from .calibrate import Report, Tick, job_of
from .launch import LaunchResult, Task, require_torch, run_group
from .replay import lanes_of
from .texts import LABELS

CHUNK = 10
"""Steps between two reports of the loss."""


@dataclass(frozen=True)
class Training:
    """What a training run came to."""

    policy: str
    plan: Plan
    losses: list[float]
    """Mean loss of each step's global batch."""
    seconds: float
    samples: int
    predicted_samples_per_s: float
    utilisation: dict[str, float]
    """Share of the training time that each lane computed."""
    scores: dict[str, Any]
    """scikit-learn's classification report on the held-out texts."""
    notes: list[str] = field(default_factory=list)

    @property
    def samples_per_s(self) -> float:
        """Training throughput, evaluation left out."""
        return self.samples / self.seconds

    def document(self) -> dict[str, Any]:
        """Everything as one JSON document."""
        average = self.scores["macro avg"]
        return {
            "policy": self.policy,
            "plan": self.plan.split(),
            "steps": len(self.losses),
            "first_loss": self.losses[0],
            "final_loss": self.losses[-1],
            "losses": self.losses,
            "seconds": self.seconds,
            "samples_per_s": self.samples_per_s,
            "predicted_samples_per_s": self.predicted_samples_per_s,
            "utilisation": self.utilisation,
            "accuracy": self.scores["accuracy"],
            "precision": average["precision"],
            "recall": average["recall"],
            "f1": average["f1-score"],
            "report": self.scores,
            "notes": self.notes,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Precision, recall and F1 by label, for a table."""
        return [
            {"label": name, **{key: float(value) for key, value in self.scores[name].items()}}
            for name in (*LABELS, "macro avg")
        ]

    def headline(self) -> str:
        """The result in a line."""
        busy = ", ".join(f"{name} {share:.0%}" for name, share in self.utilisation.items())
        return (
            f"{self.policy}: {len(self.losses)} steps in {self.seconds:.1f} s, {self.samples_per_s:.0f} samples/s "
            f"(predicted {self.predicted_samples_per_s:.0f}), loss {self.losses[0]:.3f} to {self.losses[-1]:.3f}, "
            f"accuracy {self.scores['accuracy']:.3f}; utilisation {busy}"
        )


def train(
    scenario: Scenario,
    policy: Policy,
    runs: Path,
    *,
    notes: Sequence[str] = (),
    report: Report = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Training:
    """Train as the policy divides the work; the same samples in the same order whatever the plan.

    The gradient of every step is that of the mean loss over the global batch, so the plan changes the time and, beyond
    rounding, nothing else.

    Raises:
        InputError: torch or scikit-learn is missing, the cluster is not of lanes, or the scenario has disturbances.
        WorkerFailedError: a lane died or hung.
    """
    refuse_events(dict(scenario))
    require_torch()
    if find_spec("sklearn") is None:
        raise InputError(
            "scikit-learn", "is not installed: it judges the held-out texts", "pip install 'steelyard[demo]'"
        )
    lanes = lanes_of(scenario)
    plan = allocate(policy, View.of(scenario), scenario)
    record = describe(policy)
    predicted = simulate(scenario, Fixed(plan, record)).summary
    job, data = job_of(scenario.workload, scenario.training, runs / "calibrations", seed=scenario.seed)
    names = [lane.name for lane in lanes]
    tasks = training_tasks(plan, names, scenario.training.steps)
    report(f"training {scenario.training.steps} steps as {record.label()} divides them: {plan.split()}")

    parts: dict[int, dict[str, float]] = {}
    members = set(plan.split())

    def step(name: str, done: int, loss: float) -> None:
        if name not in members:
            return
        parts.setdefault(done, {})[name] = loss
        after = min(done * CHUNK, scenario.training.steps)
        if len(parts[done]) == len(members) and done * CHUNK < scenario.training.steps + CHUNK:
            tick(after, scenario.training.steps)
            report(f"step {after}: loss {sum(parts[done].values()):.4f}")

    launch = run_group(lanes, tasks, job, timeout_s=scenario.replay.timeout_s, data=data, progress=step)
    result = summarise_training(
        scenario, record.label(), plan, launch, predicted_samples_per_s=predicted.throughput_samples_per_s
    )
    return replace(result, notes=list(notes))


def training_tasks(plan: Plan, names: Sequence[str], steps: int) -> list[Task]:
    """The whole training in chunks, then the evaluation on the first lane that took part."""
    own = {pipeline.devices[0]: list(pipeline.micro_batches) for pipeline in plan.pipelines}
    sizes = [own.get(name, []) for name in names]
    ranks = [rank for rank, each in enumerate(sizes) if each]
    chunks = [
        {"op": "train", "sizes": sizes, "ranks": ranks, "offset": start, "steps": min(CHUNK, steps - start)}
        for start in range(0, steps, CHUNK)
    ]
    return [*chunks, {"op": "evaluate", "rank": ranks[0], "ranks": ranks}]


def summarise_training(
    scenario: Scenario, policy: str, plan: Plan, launch: LaunchResult, *, predicted_samples_per_s: float
) -> Training:
    """Put together losses, times and scores from what the members answered."""
    from sklearn.metrics import classification_report

    names = [device.name for device in scenario.cluster.devices]
    chunks = [[answer for _, answer in launch.of("train", rank)] for rank in range(len(names))]
    losses = [
        sum(parts)
        for per_rank in zip(*chunks, strict=True)
        for parts in zip(*(answer["losses"] for answer in per_rank if answer["losses"]), strict=True)
    ]
    begin = min(answer["begin_s"] for answer in (own[0] for own in chunks))
    end = max(answer["end_s"] for answer in (own[-1] for own in chunks))
    evaluated = next(
        answer for rank in range(len(names)) for _, answer in launch.of("evaluate", rank) if answer["predicted"]
    )
    scores: dict[str, Any] = classification_report(
        evaluated["labels"], evaluated["predicted"], target_names=list(LABELS), output_dict=True, zero_division=0.0
    )
    return Training(
        policy=policy,
        plan=plan,
        losses=losses,
        seconds=end - begin,
        samples=len(losses) * scenario.workload.global_batch,
        predicted_samples_per_s=predicted_samples_per_s,
        utilisation={
            name: sum(answer["busy_s"] for answer in own) / (end - begin)
            for name, own in zip(names, chunks, strict=True)
        },
        scores=scores,
    )
