"""Adaptive: a run whose devices slow down, drift, go and come back, and whose plan may follow them.

The run goes from change to change of the plan. In between, steps follow each other as in any other run, each device's
work stretched by what disturbs it in that step. At every rebalance point an adaptive policy sees what was measured so
far, and may change the plan: everybody finishes the step, and then stands still for the price of the change. A device
that is lost takes the step under way with it; whatever the policy, it is then asked for a plan without that device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..results.record import digest
from . import loop, pull, recurrence
from .compiler import compile_plan
from .disturbances import factors_at, gone_at, next_loss, slowed, slower_sums
from .draws import draw_noise, noisy
from .moving import Change
from .plan import Plan, PlanError
from .program import Program
from .running import Factors, Launch, Row, check_size
from .spec import Scenario
from .view import Policy, View, allocate

WAITING = ("wait", "bubble", "input")
WORKING = ("forward", "backward", "optimizer")
Step = dict[str, Any]
"""An entry of :attr:`.view.View.history`."""
Tables = Callable[[Plan], Scenario]
"""The scenario with the tables that a plan's steps are taken from."""


@dataclass(slots=True)
class Course:
    """One launch of such a run."""

    ends: list[float] = field(default_factory=list)
    """When each step was over on the last device."""
    events: list[Row] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """What the policy was asked, and answered: step, digest of the view, plan (where it is a new one), price."""
    plans: list[tuple[Plan, Program, int]] = field(default_factory=list)
    """The plans in order, with the number of steps that were done by each."""
    history: list[Step] = field(default_factory=list)


def is_eventful(scenario: Scenario) -> bool:
    """Whether a run of the scenario is more than equal steps of one plan."""
    return bool(scenario.disturbances) or scenario.rebalance is not None


def is_adaptive(policy: Policy) -> bool:
    """Whether a policy wants to be asked again: its class says ``adaptive: ClassVar[bool] = True``."""
    return bool(getattr(policy, "adaptive", False))


def decision(
    why: str, view: View, plan: Plan, price: Change, *, launch: int, step: int, changed: bool, lost_s: float = 0.0
) -> dict[str, Any]:
    """One line of ``decisions.jsonl``, of a simulated run or a real one: what was seen, answered and paid.

    Args:
        why: what the policy was asked for.
        view: what it saw.
        plan: what goes on.
        price: of the change.
        launch: number of the run.
        step: from which on the answer holds.
        changed: whether the plan is another one than before.
        lost_s: seconds of work that a loss took along.
    """
    seen = [sorted(view.cluster.by_name), view.steps_left, view.current and view.current.sha256]
    return {
        "launch": launch,
        "step": step,
        "why": why,
        "view_sha256": digest([*seen, view.changes_left, list(view.history)]),
        "changed": changed,
        "plan_sha256": plan.sha256,
        "plan": plan.document() if changed else None,
        "price_s": price.seconds,
        "price": asdict(price),
        "lost_s": lost_s,
    }


def run_courses(
    scenario: Scenario, policy: Policy, *, seed: int, launches: int, tables: Tables | None = None
) -> list[Course]:
    """Simulate whole runs of ``sampling.steps`` steps; without noise all would be the same, so it is one.

    Args:
        scenario: what the policy sees, and what happens.
        policy: asked at the start, and at rebalance points where it is adaptive.
        seed: of the noise.
        launches: how many runs.
        tables: what each plan's steps are taken from, where it is not the scenario for all of them.

    Raises:
        Infeasible: the policy has no plan, at the start or for the devices that are left after a loss.
        PlanError: one of its plans breaks a rule: a lost device in it, for example.
    """
    first = _Run(scenario, policy, seed, 0, launches, tables=tables)
    courses = [first.run()]
    if any(noisy(scenario, plan) for plan, _, _ in courses[0].plans):
        courses += [
            _Run(scenario, policy, seed, number, launches, tables=tables).run() for number in range(1, launches)
        ]
    return courses


class _Run:
    """One launch under way: how far it is, and what is known of it."""

    def __init__(
        self, scenario: Scenario, policy: Policy, seed: int, number: int, launches: int, *, tables: Tables | None
    ) -> None:
        self.scenario = scenario
        self.tables: Tables = tables if tables is not None else lambda plan: scenario
        self.policy = policy
        self.seed = seed
        self.number = number
        self.launches = launches
        self.total = scenario.sampling.steps
        self.rules = scenario.rebalance
        self.changes_left = self.rules.at_most if self.rules else 0
        self.step = 0
        self.clock = 0.0
        self.course = Course()
        self.programs: dict[str, tuple[Program, Factors]] = {}

    def run(self) -> Course:
        """From the first step to the last."""
        self._begin()
        while self.step < self.total:
            self._go_on()
        return self.course

    @property
    def plan(self) -> Plan:
        """The plan at the moment."""
        return self.course.plans[-1][0]

    def _begin(self) -> None:
        view = replace(View.of(self.scenario), steps_left=self.total)
        plan = allocate(self.policy, view, self.scenario)
        self._take(plan)
        self._note("start", view, plan, Change(), changed=True)

    def _take(self, plan: Plan) -> None:
        """Go on by a plan."""
        if plan.sync_every > 1:
            problem = f"is {plan.sync_every}: a run with [rebalance] or disturbances does not simulate local SGD yet"
            raise PlanError("sync_every", problem, "use 1")
        if plan.sha256 not in self.programs:
            program = compile_plan(self.tables(plan), plan, apart=True)
            check_size(program, self.launches, self.total)
            noise = draw_noise(self.scenario, program, steps=self.total, launches=self.launches, seed=self.seed)
            self.programs[plan.sha256] = program, noise[min(self.number, len(noise) - 1)]
        self.course.plans.append((plan, self.programs[plan.sha256][0], 0))

    def _go_on(self) -> None:
        """To the next change of the plan, or to the end."""
        names = {name for pipeline in self.plan.pipelines for name in pipeline.devices}
        loss = next_loss(self.scenario.disturbances, names, self.step)
        lossy = loss is not None and loss < self.total
        until = loss if loss is not None and lossy else self.total
        launch = self._play(until + lossy - self.step)
        measured = _measure(launch, self.plan, self.course.plans[-1][1], self.step)
        for point in self._points(until):
            view = self._view(point, measured[: point - self.step], foreseen=False)
            plan = self._ask(view)
            if plan is not None:
                self._finish(self._play(point - self.step), point - self.step, measured)
                self._change("asked", view, plan)
                self.changes_left -= 1
                return
        self._finish(launch, until - self.step, measured)
        if lossy:
            self._lose(launch)

    def _points(self, until: int) -> Iterator[int]:
        """Steps before which the policy is asked, while it may still change something."""
        if self.rules is None or not is_adaptive(self.policy):
            return
        every = self.rules.every_steps
        for point in range((self.step // every + 1) * every, until, every):
            if self.changes_left < 1:
                return
            yield point

    def _view(self, step: int, measured: Sequence[Step], *, foreseen: bool) -> View:
        """What the policy may see before a step; a loss in that very step only once it has happened."""
        gone = gone_at(self.scenario.disturbances, step, foreseen=foreseen)
        return replace(
            View.of(self.scenario, gone=gone),
            steps_left=self.total - step,
            current=self.plan,
            changes_left=self.changes_left,
            history=(*self.course.history, *measured),
            plans={plan.sha256: plan for plan, _, _ in self.course.plans},
        )

    def _judged(self, view: View) -> Plan:
        """The policy's answer, which must do with the devices alive."""
        return allocate(self.policy, view, self.scenario.model_copy(update={"cluster": view.cluster}))

    def _ask(self, view: View) -> Plan | None:
        """A new plan, or None where the policy keeps the old one."""
        plan = self._judged(view)
        if plan.sha256 != self.plan.sha256:
            return plan
        self._note("asked", view, plan, Change(), changed=False)
        return None

    def _change(self, why: str, view: View, plan: Plan, lost_s: float = 0.0) -> None:
        """Stand still for the price of another plan, and go on by it."""
        price = view.change_to(plan)
        names = [name for each in (self.plan, plan) for name in each.samples() if name in view.cluster.by_name]
        self._stand_still(names, price.seconds)
        self._note(why, view, plan, price, changed=True, lost_s=lost_s)
        self._take(plan)

    def _lose(self, launch: Launch) -> None:
        """A device is lost: the last step of the launch was in vain, and there must be another plan."""
        lost_s = launch.ends[-1] - (launch.ends[-2] if len(launch.ends) > 1 else 0.0)
        self._stand_still(self.plan.samples(), lost_s)
        view = self._view(self.step, (), foreseen=True)
        self._change("loss", view, self._judged(view), lost_s)

    def _stand_still(self, names: Sequence[str] | dict[str, int], seconds: float) -> None:
        """Time that devices spend on no step that counts."""
        end = self.clock + seconds
        if seconds > 0:
            self.course.events += [
                (self.number, 0, self.step, name, -1, -1, -1, "rebalance", self.clock, end, 1)
                for name in dict.fromkeys(names)
            ]
        self.clock = end

    def _play(self, steps: int) -> Launch:
        """So many steps by the plan at hand, from this one on."""
        program, noise = self.programs[self.plan.sha256]
        return play(program, self._factors(program, noise, steps), steps=steps, launch=self.number)

    def _factors(self, program: Program, noise: Factors, steps: int) -> Factors:
        """Noise and disturbances together, for some steps from this one on."""
        slow = [factors_at(self.scenario.disturbances, step) for step in range(self.step, self.step + steps)]
        found = Factors(syncs={number: row[self.step :] for number, row in noise.syncs.items()})
        for number, sync in enumerate(program.syncs) if any(slow) else ():
            members = {name for worker in sync.workers for member in program.workers[worker].members for name in member}
            sums = [slower_sums(self.scenario.cluster, members, each) for each in slow]
            if max(sums) > 1.0:
                own = found.syncs.get(number)
                found.syncs[number] = [each * (own[step] if own else 1.0) for step, each in enumerate(sums)]
        for worker in program.workers:
            per_step = len(worker.stages) * len(worker.classes)
            for member in worker.members:
                name = member[0]
                computing, update = noise.compute.get(name), noise.optimizer.get(name)
                found.compute[name] = [
                    each.get(name, 1.0) * (computing[(self.step + step) * per_step + place] if computing else 1.0)
                    for step, each in enumerate(slow)
                    for place in range(per_step)
                ]
                found.optimizer[name] = [
                    each.get(name, 1.0) * (update[self.step + step] if update else 1.0)
                    for step, each in enumerate(slow)
                ]
        return found

    def _finish(self, launch: Launch, steps: int, measured: Sequence[Step]) -> None:
        """Take the first steps of a launch into the record."""
        begin, shift = self.clock, self.step
        self.course.events += [
            (self.number, 0, row[2] + shift, *row[3:8], begin + row[8], begin + row[9], row[10])
            for row in launch.events or []
            if row[2] < steps
        ]
        self.course.ends += [begin + end for end in launch.ends[:steps]]
        self.course.history += measured[:steps]
        plan, program, done = self.course.plans[-1]
        self.course.plans[-1] = plan, program, done + steps
        self.step += steps
        self.clock = self.course.ends[-1] if steps else begin

    def _note(self, why: str, view: View, plan: Plan, price: Change, *, changed: bool, lost_s: float = 0.0) -> None:
        """Write down a decision."""
        step = self.total - (view.steps_left or 0)
        self.course.decisions.append(
            decision(why, view, plan, price, launch=self.number, step=step, changed=changed, lost_s=lost_s)
        )


def at_its_best(scenario: Scenario) -> Scenario:
    """The scenario with every device as fast as it ever is: what bounds a run from below."""
    steps = {
        point for each in scenario.disturbances for point in (each.from_step, each.until_step) if point is not None
    }
    factors = [factors_at(scenario.disturbances, step) for step in sorted({0, *steps})]
    least = {name: min(each.get(name, 1.0) for each in factors) for name in {n for each in factors for n in each}}
    faster = {name: factor for name, factor in least.items() if factor < 1.0}
    return scenario.model_copy(update={"cluster": slowed(scenario.cluster, faster)}) if faster else scenario


def play(program: Program, factors: Factors, *, steps: int, launch: int = 0) -> Launch:
    """Some steps of a program with every interval recorded: by the recurrence where it holds, else event by event."""
    if program.pulled:
        return pull.run_launch(program, factors, steps=steps, launch=launch)
    if recurrence.applies(program):
        done = recurrence.run_launch(program, factors, steps=steps, launch=launch)
        if done is not None:
            return done
    return loop.run_launch(program, factors, steps=steps, launch=launch)


def _measure(launch: Launch, plan: Plan, program: Program, first: int) -> list[Step]:
    """What a monitor on every device would have written down of each step."""
    spent: dict[tuple[int, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in launch.events or []:
        spent[row[2], row[3]][row[7]] += row[9] - row[8]
    begins, dealt = [0.0, *launch.ends], plan.samples()
    found = []
    for step, end in enumerate(launch.ends):
        if program.pulled:
            dealt = pull.samples_of(program, [row for row in launch.events or [] if row[2] == step])
        devices = {
            name: {
                "samples": samples,
                "compute_s": sum(spent[step, name][kind] for kind in WORKING),
                "wait_s": sum(spent[step, name][kind] for kind in WAITING),
            }
            for name, samples in dealt.items()
        }
        busiest = min(devices, key=lambda name: (-devices[name]["compute_s"], name))
        sync_s = spent[step, busiest]["communication"]
        entry = {"step": first + step, "step_s": end - begins[step], "sync_s": sync_s, "plan_sha256": plan.sha256}
        found.append({**entry, "devices": devices})
    return found
