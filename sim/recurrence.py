"""Recurrence: the same steps as the event loop's, by arithmetic, where no two transfers ever share a link.

Alone on its links, a transfer takes as long as it takes alone; then the end of every piece of work follows from the
ends of those before it, and no event queue is needed. Whether transfers were alone is checked afterwards, on the
intervals that came out: if any two overlap on a link, there is no answer, and the event loop has to be asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .noise import Floats
from .program import Program, Send, Worker
from .running import Factors, Launch, Recorder, Row
from .schedule import Piece
from .steady import Phase, leave_out, phases, repeat
from .tracing import Round, Trace

AT_ONCE = 32
"""Steps within which a program without noise is expected to repeat itself."""
SAME = 1e-12
"""Relative difference of moments that is rounding: two flows that touch do not overlap, two equal states are one."""
LAPS = 2
"""Equal rounds that a trace holds: the end of a path is not yet what keeps the steps from being shorter."""
Delivery = tuple[int, float, float, int, int]
"""Channel, seconds on it, latency, target, and the target's key for micro-batch 0."""
Task = tuple[int, Piece, int, float, int, list[Delivery]]
"""Place, piece, key, seconds, needs, messages."""


def applies(program: Program) -> bool:
    """Whether nothing in the program waits for what the recurrence does not know: data, peers, or its own messages."""
    return not program.loaders and all(
        not worker.gathers and (worker.overlapping or not any(job.sends for job in worker.every_job))
        for worker in program.workers
    )


def run_launch(
    program: Program,
    factors: Factors | None = None,
    *,
    steps: int,
    launch: int = 0,
    record: bool = True,
    trace: Trace | None = None,
) -> Launch | None:
    """One launch of a program, or None where two transfers overlap on a link.

    Without factors, steps are computed until one ends as the one before it did: then all that follow do. Without a
    record, the same goes for the micro-batches of a step (:mod:`.steady`).
    Arguments and result are those of :func:`.loop.run_launch`.
    """
    run = _Recurrence(program, factors or Factors(), launch=launch, record=record, trace=trace)
    cycle, ends = program.sync_every, run.result.ends
    before: Floats | None = None
    equal, enough = 0, 1 if trace is None else LAPS
    for step in range(steps):
        run.step(step)
        if step == 0 and not run.nobody_shared():
            return None
        if not run.factors.empty or (steps - step - 1) % cycle:
            continue
        state = run.state()
        same = before is not None and np.allclose(state, before, rtol=0.0, atol=SAME * (ends[-1] - ends[-1 - cycle]))
        equal = equal + 1 if same else 0
        if equal == enough:
            run.result.repeats = (steps - step - 1) // cycle + 1
            for _ in range(step + 1, steps):
                ends.append(ends[-cycle] + (ends[step] - ends[step - cycle]))
            break
        before = state
    return run.result if run.nobody_shared() else None


class _Recurrence:
    """Clocks of all workers, and the intervals of the transfers on links that several may use."""

    def __init__(
        self, program: Program, factors: Factors, *, launch: int, record: bool, trace: Trace | None = None
    ) -> None:
        self.program = program
        self.factors = factors
        self.result = Launch(events=[] if record else None)
        rows: list[Row] | None = self.result.events
        self.trace = trace
        self.recorders: Sequence[Recorder] | None = trace.witnesses if trace is not None else None
        if rows is not None:
            self.recorders = [Recorder(worker, launch, rows) for worker in program.workers]
        self.per_step = [len(worker.stages) * len(worker.classes) for worker in program.workers]
        self.clocks = [0.0] * len(program.workers)
        self.free = [0.0] * program.channels
        self.sync_ends = [0.0] * len(program.syncs)
        self.compute = [[factors.compute.get(member[0]) for member in worker.members] for worker in program.workers]
        self.senders, self.users = _users(program)
        self.spans: dict[int, tuple[list[float], list[float]]] = {
            user: ([], []) for users in self.users for user in users
        }
        self.tasks = [self._tasks(worker) for worker in program.workers]
        self.phases = phases(program) if factors.empty and self.recorders is None else []
        self.log: list[list[float]] | None = None
        """Moments of a phase: per worker the ends of its pieces, then per channel those of its messages."""
        self.skipped_s = 0.0
        """Of the cycles that were left out so far; clocks go on as if these had never been."""
        self.beside = [worker.beside_by_place() for worker in program.workers]
        self.updates = [[factors.optimizer.get(member[0]) for member in worker.members] for worker in program.workers]
        self.after = sorted({sync for worker in program.workers for sync in worker.after})
        self.final = sorted({sync for worker in program.workers for sync in worker.final})

    def _tasks(self, worker: Worker) -> list[Task]:
        kinds: dict[tuple[bool, int, int], tuple[int, float, int, list[Delivery]]] = {}
        found: list[Task] = []
        for place, piece in enumerate(worker.pieces):
            backward, chunk, number = piece
            kind = (backward, chunk, worker.classes[number])
            if kind not in kinds:
                job = worker.jobs[backward][chunk][kind[2]]
                sends = [self._delivery(send, backward) for send in job.sends]
                kinds[kind] = _key(worker, backward, chunk, 0), job.seconds, job.needs, sends
            first, seconds, needs, sends = kinds[kind]
            found.append((place, piece, first + number, seconds, needs, sends))
        return found

    def _delivery(self, send: Send, backward: bool) -> Delivery:
        goal = _key(self.program.workers[send.target], backward, send.chunk, 0)
        transfer = send.transfer
        return send.channel, transfer.alone_s - transfer.latency_s, transfer.latency_s, send.target, goal

    def step(self, step: int) -> None:
        """All pieces of a step, its synchronisations and the optimizer."""
        self.number = step
        self.todo = [list(tasks) for tasks in self.tasks] if self.phases else self.tasks
        self.arrivals = [[0.0] * (2 * per_step) for per_step in self.per_step]
        self.counts = [[0] * (2 * per_step) for per_step in self.per_step]
        self.places = [0] * len(self.tasks)
        self.blocked = [-1] * len(self.tasks)
        self.ready: list[dict[int, float]] = [{} for _ in self.tasks]
        for phase in self.phases:
            self._shorten(phase)
        self.log = None
        self._advance_to([len(tasks) for tasks in self.todo])
        stuck = next((worker for worker, tasks in enumerate(self.todo) if self.places[worker] < len(tasks)), None)
        assert stuck is None, f"{self.program.workers[stuck].devices[0]} waits for ever" if stuck is not None else ""
        self._synchronise(step)
        self.result.ends.append(max(self.clocks) + self.skipped_s)

    def _shorten(self, phase: Phase) -> None:
        """Go through cycles of a phase until they repeat themselves, and leave out as many of the others as can be."""
        gone = len(self.tasks[0]) - len(self.todo[0])
        self.log = [[] for _ in range(len(self.tasks) + self.program.channels)]
        for cycles in phase.looks:
            places = [first + cycles * phase.length - gone for first in phase.first]
            self._advance_to(places)
            if self.places != places:
                return
            found = repeat(self.log, self._entries(phase, gone), 3 * cycles // 4)
            if found is not None:
                times = (phase.total - 1 - cycles) // found.cycles  # the last piece is not like the others
                self.skipped_s += times * found.seconds
                for tasks, place in zip(self.todo, places, strict=True):
                    leave_out(tasks, place, times * found.cycles, phase)
                return

    def _entries(self, phase: Phase, gone: int) -> list[int]:
        """What each log gets in a cycle: a moment for each piece of a worker, and for each message of a channel."""
        messages = [0] * self.program.channels
        for tasks, first in zip(self.todo, phase.first, strict=True):
            for task in tasks[first - gone : first - gone + phase.length]:
                for delivery in task[-1]:
                    messages[delivery[0]] += 1
        return [phase.length] * len(self.tasks) + messages

    def _advance_to(self, places: list[int]) -> None:
        """All workers up to certain places in their tasks, as far as they get."""
        todo = list(range(len(self.tasks)))
        while todo:
            number = todo.pop()
            self._advance(number, places[number], todo)

    def _advance(self, number: int, until: int, todo: list[int]) -> None:
        """One worker's pieces before a place, up to the first whose messages are still to come."""
        tasks, arrivals, counts = self.todo[number], self.arrivals[number], self.counts[number]
        plain = self.recorders is None and not any(self.compute[number])
        worker, base = self.program.workers[number], self.number * self.per_step[number]
        jobs, classes, size = worker.jobs, worker.classes, len(worker.classes)
        # One device and nothing to record is what a search asks for, a thousand times: without a call per piece.
        alone = self.compute[number][0] if self.recorders is None and len(worker.members) == 1 else None
        beside, clock = self.beside[number], self.clocks[number]
        ends = self.log[number] if self.log is not None else None
        for place, piece, key, seconds, needs, sends in tasks[self.places[number] : until]:
            if needs:
                if counts[key] < needs:
                    self.places[number] = place - len(self.tasks[number]) + len(tasks)
                    self.blocked[number] = key
                    break
                if arrivals[key] > clock:
                    if self.recorders is not None:
                        self.recorders[number].all(self.number, piece, "bubble", clock, arrivals[key])
                    clock = arrivals[key]
            start = clock
            if plain:
                clock = start + seconds
            elif alone is not None:
                backward, chunk, micro_batch = piece
                job = jobs[backward][chunk][classes[micro_batch]]
                clock = start + job.compute_s[0] * alone[base + chunk * size + micro_batch] + job.communication_s
            else:
                clock = self._work(number, piece, start)
            if place in beside:
                stretch = (clock - start) / seconds if seconds else 1.0
                self.ready[number].update(
                    (sync, max(start, clock - rest_s * stretch)) for sync, rest_s in beside[place]
                )
            if ends is not None:
                ends.append(clock)
            if sends:
                self._send(piece[2], clock, sends, todo)
        else:
            self.places[number] = until
        self.clocks[number] = clock

    def _send(self, micro_batch: int, clock: float, sends: list[Delivery], todo: list[int]) -> None:
        """Messages, each as soon as its channel is free, at once if it takes no time; who waits for one can go on."""
        free, spans, log, trace = self.free, self.spans, self.log, self.trace
        for channel, busy_s, latency_s, target, base in sends:
            if busy_s or latency_s:
                begin = max(free[channel], clock)
                end = free[channel] = begin + busy_s
            else:
                begin = end = clock
            if log is not None:
                log[len(self.tasks) + channel].append(end)
            if channel in spans and busy_s:
                spans[channel][0].append(begin)
                spans[channel][1].append(end)
            if trace is not None and (busy_s or latency_s):
                trace.messages[channel].append((begin, end))
            goal, arrivals, counts = base + micro_batch, self.arrivals[target], self.counts[target]
            arrivals[goal] = max(arrivals[goal], end + latency_s)
            counts[goal] += 1
            if self.blocked[target] == goal:
                todo.append(target)

    def _work(self, number: int, piece: Piece, start: float) -> float:
        """When a piece is over that is recorded, or whose devices are not as fast as they should be."""
        worker, factors = self.program.workers[number], self.compute[number]
        job = worker.job(piece)
        times = job.compute_s
        if any(factors):
            index = self.number * self.per_step[number] + piece.chunk * len(worker.classes) + piece.micro_batch
            times = tuple(
                [seconds * (factor[index] if factor else 1.0) for seconds, factor in zip(times, factors, strict=True)]
            )
        end = start + max(times) + job.communication_s
        if self.recorders is not None:
            self.recorders[number].work(self.number, piece, job, times=times, start=start, end=end)
        return end

    def _synchronise(self, step: int) -> None:
        """Collectives beside the backward pass, those after it, the optimizer, and those after that."""
        last: dict[tuple[int, ...], float] = {}
        workers, syncs = self.program.workers, self.program.syncs
        begins: dict[int, float] = {}
        for number, sync in enumerate(syncs):
            if sync.beside:
                entered = max(self.ready[worker][number] for worker in sync.workers)
                begins[number] = entered
                begin = max(entered, last.get(sync.workers, 0.0))
                last[sync.workers] = self._collective(number, step, entered, begin)
        for index in range(len(workers)):
            for number in self.ready[index]:
                self._expose(index, step, number, begins[number])
        self._meet(step, self.after)
        for index, (worker, updates) in enumerate(zip(workers, self.updates, strict=True)):
            times = worker.optimizer_s
            if any(updates):
                times = tuple(
                    seconds * (factor[step] if factor else 1.0) for seconds, factor in zip(times, updates, strict=True)
                )
            if self.recorders is not None:
                self.recorders[index].update(step, times, self.clocks[index])
            self.clocks[index] += max(times)
        self._meet(step, self.final)

    def _meet(self, step: int, numbers: Sequence[int]) -> None:
        """Collectives that their workers enter one after the other, and wait for."""
        for number in numbers:
            sync = self.program.syncs[number]
            if step % sync.every == 0:
                begin = max(self.clocks[worker] for worker in sync.workers)
                self._collective(number, step, begin, begin)
                for worker in sync.workers:
                    self._expose(worker, step, number, begin)

    def _collective(self, number: int, step: int, entered: float, begin: float) -> float:
        """When a collective is over that flows from ``begin`` on, its last worker having entered before."""
        transfer, factors = self.program.syncs[number].transfer, self.factors.syncs.get(number)
        factor = factors[step // self.program.syncs[number].every] if factors else 1.0
        user = -1 - number
        if user in self.spans:
            self.spans[user][0].append(begin)
            self.spans[user][1].append(begin + (transfer.alone_s - transfer.latency_s) * factor)
        self.sync_ends[number] = begin + transfer.alone_s * factor
        if self.trace is not None:
            self.trace.rounds[number].append(Round(entered, begin, self.sync_ends[number]))
        return self.sync_ends[number]

    def _expose(self, worker: int, step: int, number: int, begin: float) -> None:
        end = self.sync_ends[number]
        if end > self.clocks[worker]:
            if self.recorders is not None:
                self.recorders[worker].exposed(step, number, begin=begin, start=self.clocks[worker], end=end)
            self.clocks[worker] = end

    def state(self) -> Floats:
        """Where everything stands, relative to the end of the step: equal states have equal futures."""
        base = self.result.ends[-1] - self.skipped_s
        free = [max(self.free[channel], self.clocks[sender]) for channel, sender in self.senders.items()]
        return np.array(self.clocks + free) - base

    def nobody_shared(self) -> bool:
        """Whether no two transfers were on a link at the same time."""
        for users in self.users:
            starts = np.concatenate([np.array(self.spans[user][0]) for user in users])
            ends = np.concatenate([np.array(self.spans[user][1]) for user in users])
            order = np.lexsort((ends, starts))
            until = np.maximum.accumulate(ends[order])[:-1]
            if np.any(starts[order][1:] < until - SAME * np.abs(until)):
                return False
        if self.recorders is not None:
            for recorder in self.recorders:
                self.result.activations.update(dict.fromkeys(recorder.names, recorder.most))
        return True


def _key(worker: Worker, backward: bool, chunk: int, number: int) -> int:
    return (backward * len(worker.stages) + chunk) * len(worker.classes) + number


def _users(program: Program) -> tuple[dict[int, int], list[tuple[int, ...]]]:
    """The sender of each channel; and for each link that several channels or collectives use, which.

    Collectives have the numbers -1, -2, ... Groups of the same users are given once.
    """
    senders: dict[int, int] = {}
    resources: dict[int, set[int]] = {}
    for number, worker in enumerate(program.workers):
        for job in worker.every_job:
            for send in job.sends:
                senders[send.channel] = number
                for resource, _ in send.transfer.uses:
                    resources.setdefault(resource, set()).add(send.channel)
    for number, sync in enumerate(program.syncs):
        for resource, _ in sync.transfer.uses:
            resources.setdefault(resource, set()).add(-1 - number)
    shared = {tuple(sorted(users)) for users in resources.values() if len(users) > 1}
    return senders, sorted(shared)
