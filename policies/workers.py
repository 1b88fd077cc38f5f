"""Evaluator: values of trials from this process and from others, whichever is free.

Own pipes and no executor: an executor's threads compete with Optuna for the interpreter, which cost more than the other
processes gave. A worker ends when its pipe closes, so that none outlives a parent that was killed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ..results.errors import WorkerFailedError
from .search_goal import Goal

START_S = 1.0
"""About what a new process costs. Workers start once so much time was spent evaluating here: rent, then buy."""

AHEAD = 2
"""Trials in the hands of one worker: one that runs, and one so that it need not wait for us."""

ENDED = "a worker of the search ended; was it killed, or is memory short?"

Task = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of the goal and its other arguments, as they travel to a worker."""


@dataclass(slots=True)
class Worker:
    """One process, the pipe to it, whether it has started up, and the places of the trials that it holds."""

    process: BaseProcess
    pipe: Connection
    ready: bool
    holds: list[int]


class Evaluator:
    """Evaluates batches of trials; the outcomes come in the order of the batch, whoever made them."""

    def __init__(self, goal: Goal, workers: int, start_s: float = START_S) -> None:
        self._goal = goal
        self._count = workers
        self._patience_s = start_s
        self._workers: list[Worker] = []
        self._waiting: deque[int] = deque()
        self._batch: list[Task] = []
        self._outcomes: dict[int, Any] = {}

    def __enter__(self) -> Evaluator:
        """Start with no worker."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Add ``function(goal, *arguments)`` to the batch, and hand it to a worker that has room."""
        self._waiting.append(len(self._batch))
        self._batch.append((function, arguments))
        self._exchange()

    def outcomes(self) -> list[Any]:
        """The outcomes of the batch, in the order of :meth:`submit`; an empty batch begins.

        Raises:
            PlanError: a policy answered with an invalid plan; the same for whatever else an evaluation raised.
            WorkerFailedError: a worker was killed.
        """
        while len(self._outcomes) < len(self._batch):
            if self._waiting:
                self._evaluate_here(self._waiting.popleft())
            else:
                wait([worker.pipe for worker in self._workers if worker.holds])
            self._exchange()
        result = [self._outcomes[place] for place in range(len(self._batch))]
        self._batch, self._outcomes = [], {}
        return result

    def _evaluate_here(self, place: int) -> None:
        started = time.perf_counter()
        function, arguments = self._batch[place]
        self._outcomes[place] = function(self._goal, *arguments)
        self._patience_s -= time.perf_counter() - started
        if self._patience_s < 0 and not self._workers:
            self._workers = [_start(self._goal) for _ in range(self._count)]

    def _exchange(self) -> None:
        """Take what the workers have done, and hand on what waits."""
        for worker in self._workers:
            while worker.pipe.poll():
                self._receive(worker)
            while self._waiting and worker.ready and len(worker.holds) < AHEAD:
                place = self._waiting.popleft()
                try:
                    worker.pipe.send(self._batch[place])
                except OSError as error:
                    raise WorkerFailedError(ENDED) from error
                worker.holds.append(place)

    def _receive(self, worker: Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError) as error:  # OSError: it left a trial unread
            raise WorkerFailedError(ENDED) from error
        if isinstance(message, BaseException):
            raise message
        if worker.ready:
            self._outcomes[worker.holds.pop(0)] = message
        worker.ready = True


def _start(goal: Goal) -> Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, goal), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours, ready=False, holds=[])


def _serve(pipe: Connection, goal: Goal) -> None:
    """A worker's life: say that it is up, answer trial after trial, end with the pipe."""
    import importlib
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    importlib.import_module("steelyard.sim.engine")  # now, and not within the first trial
    try:
        pipe.send(None)
        while True:
            pipe.send(_answer(goal, *pipe.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _answer(goal: Goal, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What the function gives, or what it raised: the parent raises it again."""
    import pickle

    try:
        return function(goal, *arguments)
    except Exception as error:  # noqa: BLE001 - sent to the parent, not swallowed
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        except Exception:  # noqa: BLE001 - an exception that cannot travel is told in words
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
