"""The event loop: SimPy processes that run a program, step after step. The only file that imports simpy.

One process per worker (a device, or the devices of a tensor-parallel group) goes through its pieces in the order of its
schedule. What it does between two meetings with others is its own, so its clock runs ahead of the event queue
there, and one event stands for all of it. Messages and collectives are flows on shared links (:mod:`.fluid`). Workers
are generators that are resumed here: a message wakes its receiver in its own event, where a process of SimPy's would
need a second one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial

import simpy

from .fluid import Fluid
from .network import Transfer
from .program import PREFETCH, Job, Program, Send
from .running import Factors, Launch, Recorder
from .schedule import Piece
from .steady import Phase, leave_out, phases, repeat
from .tracing import Round, Trace

SAME = 1e-12
"""Of a step: moments that differ by less are one, but for rounding."""
Process = Generator[simpy.Event | None, None, None]
"""What a worker does; gives the events that it waits for."""


def until(env: simpy.Environment, moment: float, value: object = None) -> simpy.Event:
    """An event at a moment, or a rounding later: SimPy takes delays, and what is due by then must be over."""
    now = env.now
    delay = moment - now
    if now + delay < moment:
        delay += math.ulp(moment)
    return env.timeout(delay if delay > 0.0 else 0.0, value)


def call_at(env: simpy.Environment, moment: float, action: Callable[[], object]) -> None:
    """Call something at a moment."""
    event = until(env, moment)
    assert event.callbacks is not None

    def call(_: simpy.Event) -> None:
        action()

    event.callbacks.append(call)


class Flow:
    """A transfer under way. By itself on its links its end is known, and one event stands for all of it."""

    __slots__ = ("arrived", "channel", "due", "end", "factor", "sent", "transfer")

    def __init__(
        self,
        transfer: Transfer,
        arrived: Callable[[], object],
        sent: Callable[[], object] | None,
        *,
        channel: Channel | None,
        factor: float,
    ):
        self.transfer = transfer
        self.arrived = arrived
        self.sent = sent
        self.channel = channel
        self.factor = factor
        self.end = math.inf
        """When its last byte leaves the links; infinite while it shares them."""
        self.due = 0.0
        """That moment while it is alone, which its event was made for; negative once it shares."""

    def __call__(self, _: simpy.Event) -> None:
        """Arrive, unless another flow came and it ends at another time."""
        if self.end == self.due:
            self.arrived()


class Traffic:
    """Flows on the links of a cluster: those that are alone by arithmetic, those that share by the fluid model."""

    def __init__(self, env: simpy.Environment, capacities: Sequence[float]) -> None:
        self.env = env
        self.fluid = Fluid(capacities)
        self.settling = False
        self.planned: set[float] = set()
        self.busy = [0.0] * len(capacities)
        """Per resource, until when the flow on it is alone there; infinite while flows share it."""
        self.alone: list[Flow | None] = [None] * len(capacities)
        self.sharing = [0] * len(capacities)

    def start(
        self,
        transfer: Transfer,
        arrived: Callable[[], object],
        sent: Callable[[], object] | None = None,
        *,
        channel: Channel | None = None,
        factor: float = 1.0,
    ) -> Flow:
        """Let a transfer flow now.

        ``sent`` is called when its last byte has left the links, ``arrived`` a latency later.
        """
        now, busy, flow = self.env.now, self.busy, Flow(transfer, arrived, sent, channel=channel, factor=factor)
        for resource, _ in transfer.uses:
            if busy[resource] > now:
                self._share(flow)
                return flow
        flow.end = flow.due = end = now + (transfer.alone_s - transfer.latency_s) * factor
        for resource, _ in transfer.uses:
            busy[resource] = end
            self.alone[resource] = flow
        event = self.env.timeout(transfer.alone_s * factor)
        assert event.callbacks is not None
        event.callbacks.append(flow)
        if sent is not None:
            call_at(self.env, end, partial(self._left, flow, end))
        return flow

    def _left(self, flow: Flow, end: float) -> None:
        if flow.due == end and flow.sent is not None:
            flow.sent()

    def _share(self, flow: Flow) -> None:
        """Put a flow into the fluid, and with it those that were alone on its links until now."""
        now = self.env.now
        for resource, _ in flow.transfer.uses:
            other = self.alone[resource]
            if other is not None and now < other.end < math.inf:
                whole = other.transfer.alone_s - other.transfer.latency_s
                self._enter(other, other.transfer.volume_bytes * (other.end - now) / whole)
        self._enter(flow, flow.transfer.volume_bytes * flow.factor)

    def _enter(self, flow: Flow, volume: float) -> None:
        flow.end, flow.due = math.inf, -1.0
        busy, alone, sharing = self.busy, self.alone, self.sharing
        for resource, _ in flow.transfer.uses:
            busy[resource] = math.inf
            alone[resource] = None
            sharing[resource] += 1
        self.fluid.start(self.env.now, volume, flow.transfer.uses, flow)
        if not self.settling:  # all starts of one moment are settled at once
            self.settling = True
            call_at(self.env, self.env.now, self._settle)

    def _settle(self) -> None:
        self.settling = False
        end = self.fluid.next_end(self.env.now)
        if end is not None and end not in self.planned:
            self.planned.add(end)
            call_at(self.env, end, partial(self._finish, end))

    def _finish(self, planned: float) -> None:
        self.planned.discard(planned)
        now, busy, sharing = self.env.now, self.busy, self.sharing
        together: dict[float, list[Flow]] = {}  # those that arrive at one moment, which is one event
        for flow in self.fluid.finish(max(planned, now)):
            assert isinstance(flow, Flow)
            flow.end = now
            for resource, _ in flow.transfer.uses:
                sharing[resource] -= 1
                if not sharing[resource]:
                    busy[resource] = now
            together.setdefault(flow.transfer.latency_s * flow.factor, []).append(flow)
        for latency, flows in together.items():
            call_at(self.env, now + latency, partial(_arrive, flows))
        for flow in [flow for flows in together.values() for flow in flows]:
            if flow.sent is not None:
                flow.sent()
            if flow.channel is not None:
                flow.channel.next()
        if not self.settling:
            self._settle()


def _arrive(flows: Sequence[Flow]) -> None:
    for flow in flows:
        flow.arrived()


class Channel:
    """Messages from one worker to another: one at a time, in order, each some latency later at its goal."""

    def __init__(self, env: simpy.Environment, traffic: Traffic) -> None:
        self.env = env
        self.traffic = traffic
        self.waiting: deque[tuple[Transfer, Callable[[], object], Callable[[], object] | None]] = deque()
        self.current: Flow | None = None
        self.flows: list[tuple[float, Flow]] | None = None
        """When each message began to flow, where that is traced."""

    def send(self, transfer: Transfer, arrived: Callable[[], object], sent: Callable[[], object] | None = None) -> None:
        """Send a message; ``sent`` is called when it has left, ``arrived`` when it is at its goal."""
        current = self.current
        if current is None or (current.end <= self.env.now and not self.waiting):
            self._start(transfer, arrived, sent)
            return
        self.waiting.append((transfer, arrived, sent))
        if current.end < math.inf:
            call_at(self.env, current.end, self.next)

    def next(self) -> None:
        """Send the next message that waits, if the one before is through."""
        if self.waiting and (self.current is None or self.current.end <= self.env.now):
            current = self._start(*self.waiting.popleft())
            if self.waiting and current.end < math.inf:
                call_at(self.env, current.end, self.next)

    def _start(self, transfer: Transfer, arrived: Callable[[], object], sent: Callable[[], object] | None) -> Flow:
        self.current = flow = self.traffic.start(transfer, arrived, sent, channel=self)
        if self.flows is not None:
            self.flows.append((self.env.now, flow))
        return flow


class Meeting:
    """A collective: begins when the last participant has entered and its group's one before is over."""

    def __init__(
        self, env: simpy.Environment, traffic: Traffic, participants: int, transfer: Transfer, before: Meeting | None
    ) -> None:
        self.env = env
        self.traffic = traffic
        self.participants = participants
        self.transfer = transfer
        self.factors: list[float] | None = None
        self.rounds = 0
        self.before = before
        self.behind: Meeting | None = None
        if before is not None:
            before.behind = self
        self.entered = 0
        self.begin = self.flows_from = 0.0
        self.traced: list[Round] | None = None
        self.done = env.event()

    def enter(self, moment: float) -> simpy.Event:
        """Enter now; the event given back fires at the end, its value the (begin, end) of the collective."""
        done = self.done
        self.entered += 1
        if self.entered == self.participants:
            self.begin = moment
            self._try()
        return done

    def _try(self) -> None:
        """Start, unless the collective before is still to come in this round."""
        if self.entered == self.participants and (self.before is None or self.before.rounds > self.rounds):
            factor = self.factors[self.rounds] if self.factors else 1.0
            self.flows_from = self.env.now
            self.traffic.start(self.transfer, self._end, factor=factor)

    def _end(self) -> None:
        done, self.done = self.done, self.env.event()
        self.entered = 0
        self.rounds += 1
        if self.traced is not None:
            self.traced.append(Round(self.begin, self.flows_from, self.env.now))
        done.succeed((self.begin, self.env.now))
        if self.behind is not None:
            self.behind._try()


class Gathering:
    """ZeRO-3: peers come together for each piece; the weights flow once for all of them."""

    def __init__(self, env: simpy.Environment, traffic: Traffic, peers: int) -> None:
        self.env = env
        self.traffic = traffic
        self.peers = peers
        self.entered = 0
        self.done = env.event()
        self.flows: list[tuple[float, Flow]] | None = None
        """When the weights of each round began to flow, where that is traced."""

    def enter(self, transfer: Transfer) -> simpy.Event:
        """Enter now; the event fires when the last peer has, its value an event for the end of the transfer."""
        done = self.done
        self.entered += 1
        if self.entered == self.peers:
            self.entered, self.done = 0, self.env.event()
            over = self.env.event()
            flow = self.traffic.start(transfer, over.succeed)
            if self.flows is not None:
                self.flows.append((self.env.now, flow))
            done.succeed(over)
        return done


class _Run:
    """One launch of a program: the parts that its workers share."""

    def __init__(
        self, program: Program, factors: Factors, *, steps: int, launch: int, record: bool, trace: Trace | None = None
    ) -> None:
        self.env = simpy.Environment()
        self.program = program
        self.steps = steps
        self.number = launch
        self.result = Launch(ends=[0.0] * steps, events=[] if record else None)
        self.factors = factors
        self.traffic = Traffic(self.env, program.capacities)
        self.channels = [Channel(self.env, self.traffic) for _ in range(program.channels)]
        self.meetings = self._meetings()
        groups = {(gather.group, gather.peers) for worker in program.workers for gather in worker.gathers}
        self.gatherings = {group: Gathering(self.env, self.traffic, peers) for group, peers in sorted(groups)}
        self.trace = trace
        plain = factors.empty and not record and trace is None
        self.watch = _Watch(self, phases(program) if plain else [])
        self.processes = [_Process(self, number) for number in range(len(program.workers))]
        self.over = self.env.event()
        self.left = [len(self.processes)] * steps
        self.loads: dict[int, int] = {}
        """Per input pipeline, its place in the queue."""
        self.states: list[tuple[tuple[object, ...], list[float]]] = []
        if trace is not None:
            self._listen(trace)

    def _listen(self, trace: Trace) -> None:
        """Let everything that flows leave its moments in the trace."""
        for channel in self.channels:
            channel.flows = []
        for meeting, rounds in zip(self.meetings, trace.rounds, strict=True):
            meeting.traced = rounds
        for gathering in self.gatherings.values():
            gathering.flows = []

    def traced(self, trace: Trace) -> None:
        """Write down when flows had left the links, which is known once they have."""
        trace.messages[:] = [[(begin, flow.end) for begin, flow in channel.flows or ()] for channel in self.channels]
        for group, gathering in self.gatherings.items():
            trace.gathers[group] = [(begin, flow.end) for begin, flow in gathering.flows or ()]

    def recorder(self, number: int) -> Recorder | None:
        """Who writes down what a worker does, if anybody is to."""
        if self.trace is not None:
            return self.trace.witnesses[number]
        rows = self.result.events
        return Recorder(self.program.workers[number], self.number, rows) if rows is not None else None

    def _meetings(self) -> list[Meeting]:
        meetings: list[Meeting] = []
        last: dict[tuple[int, ...], Meeting] = {}
        for number, sync in enumerate(self.program.syncs):
            before = last.get(sync.workers) if sync.beside else None
            meeting = Meeting(self.env, self.traffic, len(sync.workers), sync.transfer, before)
            meeting.factors = self.factors.syncs.get(number)
            meetings.append(meeting)
            if sync.beside:
                last[sync.workers] = meeting
        return meetings

    def run(self) -> Launch:
        """Run every worker to its last step."""
        for process in self.processes:
            process.go()
        for number in range(len(self.program.loaders)):
            self.env.process(self._load(number))
        try:
            self.env.run(until=self.over)
        except RuntimeError as error:  # no events are left, and it is not over
            stuck = min(self.processes, key=lambda process: process.step)
            raise AssertionError(f"{stuck.names[0]} waits for ever in step {stuck.step}") from error
        for process in self.processes:
            if process.recorder is not None:
                self.result.activations.update(dict.fromkeys(process.names, process.recorder.most))
        return self.result

    def finished(self, step: int) -> None:
        """A worker is through with a step; after the last worker, the run may be over, or about to repeat itself."""
        self.left[step] -= 1
        if self.left[step]:
            return
        if step + 1 == self.steps:
            self.over.succeed()
        elif self.factors.empty and self._repeats(step):
            cycle, ends = self.program.sync_every, self.result.ends
            self.result.repeats = (self.steps - step - 1) // cycle + 1
            for later in range(step + 1, self.steps):
                ends[later] = ends[later - cycle] + (ends[step] - ends[step - cycle])
            if self.result.events is not None:
                self.result.events = [row for row in self.result.events if row[2] <= step]
            self.over.succeed()

    def _repeats(self, step: int) -> bool:
        """Whether everything stands as it stood one and two rounds ago: then it will go on as it went from there."""
        cycle = self.program.sync_every
        if (self.steps - step - 1) % cycle:
            return False
        self.states.append(self._state(step))
        if len(self.states) < 3:
            return False
        *earlier, (now, times) = self.states[-3:]
        close = SAME * (times[0] - earlier[-1][1][0])
        # The first number is the moment itself; all others are relative to it.
        return all(
            before == now and all(abs(a - b) <= close for a, b in zip(then[1:], times[1:], strict=True))
            for before, then in earlier
        )

    def _state(self, step: int) -> tuple[tuple[object, ...], list[float]]:
        """Where everything stands at the end of a step: what is countable, and moments relative to now."""
        now, base = self.env.now, step + 1
        marks: list[object] = [len(channel.waiting) for channel in self.channels]
        marks += [meeting.entered for meeting in self.meetings] + [self.loads[number] for number in sorted(self.loads)]
        times = [now]
        for process in self.processes:
            start = base * 2 * process.per_step
            awaited = process.awaited[0] - start if process.awaited is not None else None
            arrived = tuple(sorted((key - start, count) for key, count in process.arrived.items()))
            marks += [process.step - base, process.place, awaited, arrived, process.loaded, len(process.ready)]
            times.append(process.clock - now)
        times += sorted(event[0] - now for event in self.env._queue)
        times += [rate for _, rate in self.traffic.fluid.rates(now)]
        return (*marks, len(times)), times

    def _load(self, number: int) -> Generator[simpy.Event, object, None]:
        """An input pipeline: micro-batch after micro-batch, a few ahead of whoever needs them."""
        loader = self.program.loaders[number]
        for _ in range(self.steps):
            for place, (worker, _, samples) in enumerate(loader.queue):
                self.loads[number] = place
                target = self.processes[worker]
                while target.loaded >= PREFETCH:
                    target.room = self.env.event()
                    yield target.room
                begin = self.env.now
                yield self.env.timeout(samples / loader.samples_per_s)
                if self.trace is not None:
                    self.trace.loads[number].append((begin, self.env.now))
                target.deliver_data()


class _Watch:
    """Looks, in the midst of a step, whether micro-batches repeat each other, and leaves out those that still would."""

    def __init__(self, run: _Run, phases: Sequence[Phase]) -> None:
        self.shared = run
        self.looks = {
            phase.first[0] + cycles * phase.length - 1: (phase, 3 * cycles // 4)
            for phase in phases
            for cycles in phase.looks
        }
        """By the place of the first worker's piece after which to look: the phase, and how many cycles to look at."""
        self.skipped_s = 0.0
        """Of the cycles that were left out so far; clocks go on as if these had never been."""

    def look(self, phase: Phase, window: int) -> None:
        """Leave out the cycles of a phase that are still to come, if those in the window repeat themselves."""
        workers = self.shared.processes
        done = [worker.place + 1 - first for worker, first in zip(workers, phase.first, strict=True)]
        left = phase.total - 1 - max(done) // phase.length
        if left < 1 or min(done) <= window * phase.length or len({worker.step for worker in workers}) > 1:
            return
        logs = [worker.ended for worker in workers] + [worker.came for worker in workers]
        needs = [worker.needs_next(phase.length) for worker in workers]
        found = repeat(logs, [phase.length] * len(workers) + needs, window)
        if found is None or max(self._under_way()) > window // 4:
            return
        times = left // found.cycles
        self.skipped_s += times * found.seconds
        for worker in workers:
            leave_out(worker.todo, worker.at + 1, times * found.cycles, phase)

    def _under_way(self) -> list[int]:
        """Per worker, at most how many messages to it were sent and have not arrived."""
        workers = self.shared.processes
        found = [-sum(worker.arrived.values()) for worker in workers]
        for worker in workers:
            found[worker.number] -= sum(task[5] for task in worker.todo[: worker.at])
            for task in worker.todo[: worker.at + 1]:
                for delivery in task[6]:
                    found[delivery[2].number] += 1
        return found


class _Process:
    """One worker at work. Its clock is at or ahead of the event queue's."""

    def __init__(self, run: _Run, number: int) -> None:
        self.shared = run
        self.env = run.env
        self.number = number
        self.worker = worker = run.program.workers[number]
        self.names = tuple(member[0] for member in worker.members)
        self.recorder = run.recorder(number)
        self.micro_batches = len(worker.classes)
        self.per_step = len(worker.stages) * self.micro_batches
        self.compute = [run.factors.compute.get(name) for name in self.names]
        self.updates = [run.factors.optimizer.get(name) for name in self.names]
        self.beside = worker.beside_by_place()
        self.clock = 0.0
        self.step = self.place = 0
        self.arrived: dict[int, int] = {}
        self.tasks: list[Task] = []
        self.todo: list[Task] = []
        """Tasks of this step."""
        self.watched = bool(run.watch.looks)
        self.ended: list[float] = []
        """Moments at which the pieces of this step were over, if anybody looks at them."""
        self.came: list[float] = []
        """The same of messages."""
        self.awaited: tuple[int, int] | None = None
        """The key of the piece that waits for messages, and how many must have come."""
        self.loaded = 0
        self.data: simpy.Event | None = None
        self.room: simpy.Event | None = None
        self.ready: dict[int, simpy.Event] = {}
        self.body = self.run()

    def go(self, _: simpy.Event | None = None) -> None:
        """Go on to the next event that has to be waited for, which calls this again; None: whoever wakes it does."""
        while (event := next(self.body, None)) is not None:
            if event.callbacks is not None:
                event.callbacks.append(self.go)
                return

    @property
    def at(self) -> int:
        """Where the piece at hand stands among the tasks of this step."""
        return self.place - len(self.tasks) + len(self.todo)

    def needs_next(self, count: int) -> int:
        """How many messages the next few pieces wait for."""
        return sum(task[5] for task in self.todo[self.at + 1 : self.at + 1 + count])

    def key(self, step: int, piece: Piece) -> int:
        """A number for a piece of a step."""
        chunk = (step * 2 + piece.backward) * len(self.worker.stages) + piece.chunk
        return chunk * self.micro_batches + piece.micro_batch

    def deliver(self, key: int) -> None:
        """A message for a piece has arrived: whoever waits for it goes on."""
        count = self.arrived[key] = self.arrived.get(key, 0) + 1
        if self.watched:
            self.came.append(self.env.now)
        if self.awaited == (key, count):
            self.awaited = None
            self.go()

    def deliver_data(self) -> None:
        """A micro-batch has been loaded."""
        self.loaded += 1
        if self.data is not None:
            event, self.data = self.data, None
            event.succeed()

    def run(self) -> Process:
        """All steps: the pieces, the synchronisations, the optimizer. No barrier follows it."""
        self.tasks = self._tasks()
        ends = self.shared.result.ends
        for step in range(self.shared.steps):
            self.step = step
            yield from self._pieces(step)
            for sync, done in self.ready.items():
                yield from self._expose(sync, done)
            self.ready = {}
            for sync in self.worker.after:
                yield from self._meet(sync)
            self._update(step)
            for sync in self.worker.final:
                if step % self.shared.program.syncs[sync].every == 0:
                    yield from self._meet(sync)
            ends[step] = max(ends[step], self.clock + self.shared.watch.skipped_s)
            self.step = step + 1
            self.shared.finished(step)
        yield until(self.env, self.clock)

    def _tasks(self) -> list[Task]:
        """The pieces of a step with all that a step does not change."""
        worker, found = self.worker, list[Task]()
        plain = not any(self.compute) and self.recorder is None and not worker.gathers
        kinds: dict[tuple[bool, int, int], tuple[int, Job, list[Delivery], bool]] = {}
        for place, piece in enumerate(worker.pieces):
            backward, chunk, number = piece
            kind = (backward, chunk, worker.classes[number])
            if kind not in kinds:
                job = worker.jobs[backward][chunk][kind[2]]
                needs_data = worker.loader is not None and not backward and chunk == 0 and job.samples > 0
                sends = [self._delivery(backward, send) for send in job.sends]
                kinds[kind] = self.key(0, Piece(backward, chunk, 0)), job, sends, needs_data
            first, job, sends, needs_data = kinds[kind]
            seconds = job.seconds if plain and place not in self.beside else -1.0
            found.append((place, piece, first + number, job, seconds, job.needs, sends, needs_data))
        return found

    def _delivery(self, backward: bool, send: Send) -> Delivery:
        target = self.shared.processes[send.target]
        goal = target.key(0, Piece(backward, send.chunk, 0))
        return self.shared.channels[send.channel], send.transfer, target, goal, 2 * target.per_step

    def _pieces(self, step: int) -> Process:  # noqa: PLR0912 - the inner loop, where a call more is a tenth of its time
        """The pieces of a step, in order. Waits only where others are involved."""
        env, arrived, base = self.env, self.arrived, step * 2 * self.per_step
        self.todo, self.ended, self.came = list(self.tasks), [], []
        for place, piece, own_key, job, seconds, needs, sends, needs_data in self.todo:  # may become less meanwhile
            self.place = place
            if needs:
                key = base + own_key
                if self.clock > env.now:
                    yield until(env, self.clock)
                if arrived.get(key, 0) < needs:
                    self.awaited = key, needs
                    yield None
                    self._passed(piece, "bubble")
                del arrived[key]
            if needs_data:
                yield from self._take_data(piece)
            if seconds >= 0.0:
                self.clock += seconds
            elif self.worker.gathers and job.samples:
                yield from self._work_gathered(place, piece, job)
            else:
                self._work(place, piece, job)
            if self.watched:
                self._note(place)
            if sends:
                if self.clock > env.now:
                    yield until(env, self.clock)
                if self.worker.overlapping:
                    self._send(step, piece, sends)
                else:
                    yield from self._send_waiting(step, piece, sends)

    def _note(self, place: int) -> None:
        """A piece is over, and its moment may be asked for."""
        self.ended.append(self.clock)
        if self.number == 0 and place in self.shared.watch.looks:
            self.shared.watch.look(*self.shared.watch.looks[place])

    def _take_data(self, piece: Piece) -> Process:
        """Take the next loaded micro-batch; the loader may go on."""
        if self.clock > self.env.now:
            yield until(self.env, self.clock)
        if not self.loaded:
            self.data = self.env.event()
            yield self.data
            self._passed(piece, "input")
        self.loaded -= 1
        if self.room is not None:
            event, self.room = self.room, None
            event.succeed()

    def _work_gathered(self, place: int, piece: Piece, job: Job) -> Process:
        """ZeRO-3: wait for the peers, then for the first layer's weights; the rest flow beside the computation."""
        if self.clock > self.env.now:
            yield until(self.env, self.clock)
        gather = self.worker.gathers[piece.chunk]
        transfer = gather.backward if piece.backward else gather.forward
        if self.shared.trace is not None:
            self.shared.trace.entries.setdefault(gather.group, []).append(self.number)
        met = self.shared.gatherings[gather.group].enter(transfer)
        yield met
        over = met.value
        assert isinstance(over, simpy.Event)
        self._passed(piece, "wait")
        begin, self.clock = self.clock, self.clock + transfer.alone_s / gather.layers
        if self.recorder is not None:
            self.recorder.all(self.step, piece, "communication", begin, self.clock)
        self._work(place, piece, job)
        yield until(self.env, self.clock)
        if not over.processed:
            yield over
            self._passed(piece, "communication")

    def _work(self, place: int, piece: Piece, job: Job) -> None:
        """Compute a piece; synchronisations that become ready in it are entered beside."""
        start, times = self.clock, job.compute_s
        index = self.step * self.per_step + piece.chunk * self.micro_batches + piece.micro_batch
        if any(self.compute):
            factors = [each[index] if each else 1.0 for each in self.compute]
            times = tuple([seconds * factor for seconds, factor in zip(times, factors, strict=True)])
        end = self.clock = start + max(times) + job.communication_s
        if place in self.beside:
            stretch = (end - start) / job.seconds if job.seconds else 1.0
            for sync, rest_s in self.beside[place]:
                self.ready[sync] = done = self.env.event()
                call_at(self.env, max(start, end - rest_s * stretch), partial(self._enter, sync, done))
        if self.recorder is not None:
            self.recorder.work(self.step, piece, job, times=times, start=start, end=end)

    def _enter(self, sync: int, done: simpy.Event) -> None:
        """Enter a synchronisation beside the computation; ``done`` fires with its end."""
        over = self.shared.meetings[sync].enter(self.env.now)
        assert over.callbacks is not None
        over.callbacks.append(done.trigger)

    def _send(self, step: int, piece: Piece, sends: list[Delivery]) -> None:
        for channel, transfer, target, goal, per_step in sends:
            key = goal + piece.micro_batch + step * per_step
            if transfer.alone_s:
                channel.send(transfer, partial(target.deliver, key))
            else:  # by an event, so that a chain of free messages is no recursion
                call_at(self.env, self.env.now, partial(target.deliver, key))

    def _send_waiting(self, step: int, piece: Piece, sends: list[Delivery]) -> Process:
        """Send where communication takes the same cores as computation: one message after the other, waiting."""
        for channel, transfer, target, goal, per_step in sends:
            sent = self.env.event()
            key = goal + piece.micro_batch + step * per_step
            channel.send(transfer, partial(target.deliver, key), sent.succeed)
            yield sent
            self._passed(piece, "communication")

    def _meet(self, sync: int) -> Process:
        """Enter a collective and wait for its end."""
        if self.clock > self.env.now:
            yield until(self.env, self.clock)
        done = self.shared.meetings[sync].enter(self.clock)
        yield from self._expose(sync, done)

    def _expose(self, sync: int, done: simpy.Event) -> Process:
        """Wait for the end of a collective; what of it comes after the own clock is exposed."""
        yield done
        span = done.value
        assert isinstance(span, tuple)
        begin, end = span
        if end > self.clock:
            if self.recorder is not None:
                self.recorder.exposed(self.step, sync, begin=begin, start=self.clock, end=end)
            self.clock = end

    def _update(self, step: int) -> None:
        """The optimizer step of every member."""
        times = self.worker.optimizer_s
        if any(self.updates):
            factors = [each[step] if each else 1.0 for each in self.updates]
            times = tuple(seconds * factor for seconds, factor in zip(times, factors, strict=True))
        if self.recorder is not None:
            self.recorder.update(step, times, self.clock)
        self.clock += max(times)

    def _passed(self, piece: Piece, kind: str) -> None:
        """Time went by until now without work: under its name, unless another device was the cause."""
        now = self.env.now
        if self.recorder is not None:
            self.recorder.all(self.step, piece, kind, self.clock, now)
        self.clock = now


Delivery = tuple[Channel, Transfer, _Process, int, int]
"""Channel, transfer, target, the target's key for micro-batch 0 of step 0, and what a step adds to it."""
Task = tuple[int, Piece, int, Job, float, int, list[Delivery], bool]
"""Place, piece, key, job, its seconds (negative: not known beforehand), needs, messages, and whether it needs data."""


def run_launch(
    program: Program,
    factors: Factors | None = None,
    *,
    steps: int,
    launch: int = 0,
    record: bool = True,
    trace: Trace | None = None,
) -> Launch:
    """Simulate one launch of a program, event by event.

    Args:
        program: as :func:`.compiler.compile_plan` puts it together.
        factors: on the noiseless times; none without noise.
        steps: optimizer steps.
        launch: number of the launch, for the record.
        record: whether to keep what every device did when.
        trace: filled with what led to what, if given; then nothing is recorded.
    """
    run = _Run(program, factors or Factors(), steps=steps, launch=launch, record=record, trace=trace)
    result = run.run()
    if trace is not None:
        run.traced(trace)
    return result
