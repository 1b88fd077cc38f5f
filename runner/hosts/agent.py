"""Serves a machine's lanes: says what they are, runs the workers that the driver orders, and ends with the driver."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from ..devices import NamedLane, candidate_lanes, fingerprint
from ..isolation.room import rooms
from ..launch import start_worker
from ..places import new_place, sweep_places
from ..watch import Worker
from .mailbox import Store, put, put_words, take, take_words
from .membership import Membership, interface_towards

LOOK_S = 0.1
"""Between two looks for an order."""
SAID_S = 0.05
"""Lines are passed on in letters that so long a time has gone into: a letter a step would disturb the step."""
QUIET_S = 0.5
"""A worker that has said nothing for so long has its state passed on whenever that is another."""
SILENT_S = 10.0
"""A relay that has given no sign of life for so long is gone, and its worker with it."""
FETCH_S = 60.0


def announce(store: Store, membership: Membership) -> None:
    """Tell the driver which lanes could be had here."""
    lanes = [lane.model_dump(mode="json") for lane in candidate_lanes()]
    put_words(store, f"machine/{membership.number}", {"lanes": lanes, "fingerprint": fingerprint()})


def serve(store: Store, membership: Membership) -> int:
    """Run what is ordered until the driver says that it is over; its exit code.

    Raises:
        torch.distributed.DistError: the driver is gone; the workers that ran for it are killed.
    """
    announce(store, membership)
    sweep_places()
    number = 1
    running: list[threading.Thread] = []
    while True:
        if not store.check([f"order/{membership.number}/{number}"]):
            if store.check(["over"]):
                for each in running:  # each still removes its folder
                    each.join(SILENT_S)
                return int(store.get("over"))
            time.sleep(LOOK_S)
            continue
        order = take_words(store, f"order/{membership.number}/{number}", FETCH_S)
        running = [each for each in running if each.is_alive()]
        running.append(threading.Thread(target=run_order, args=(membership, order), daemon=True))
        running[-1].start()
        number += 1


def run_order(membership: Membership, order: dict[str, Any]) -> None:
    """Run one worker, pass its lines on, and send what it measured; a connection and a folder of its own."""
    store = membership.join_store()
    key, rank, job = order["key"], order["rank"], order["job"]
    lane = NamedLane.model_validate({**job["lanes"][rank], "machine": 0})  # here it is at home
    place = new_place()
    try:
        job["data"] = _samples(store, order["file"], place)
        with rooms([lane], interface=interface_towards(membership.address)) as (room,):
            job["rooms"] = [room.document] * len(job["lanes"])
            (place / "job.json").write_text(json.dumps(job))
            worker = start_worker(room, rank, place)
            try:
                code = listen(store, key, worker)
            finally:
                _kill(worker.process)
            words = worker.last_words()
            if code < 0 and room.memory is not None and room.memory.has_killed():
                code, words = 1, f"{words}\nMemoryError: beyond its limit of {lane.memory_limit_gib:g} GiB"
            put(store, f"{key}/log", words.encode())
            if code == 0:
                put(store, f"{key}/result", (place / f"rank-{rank}.json").read_bytes())
        say(store, key, "", code)
    except Exception as error:  # whatever it is, the driver must hear of it, or it would wait in vain
        put(store, f"{key}/log", f"{type(error).__name__}: {error}\n".encode())
        say(store, key, "", 1)
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


_said: dict[str, int] = {}
"""Letters of lines so far, by worker."""


def say(store: Store, key: str, lines: str, code: int | None = None, state: int | None = None) -> None:
    """Send a letter: lines of a worker, its state where it shows one, and in the last letter its exit code."""
    number = _said.get(key, 0)
    _said[key] = number + 1
    put_words(store, f"{key}/said/{number}", {"lines": lines, "code": code, "state": state})


def listen(store: Store, key: str, worker: Worker) -> int:
    """Pass a worker's lines on, and its state with them, until it ends, or until nobody is there to hear them.

    A worker that is silent may wait or be stuck: its state goes alone then, whenever it is another than was told.

    Returns:
        Its exit code; 1 where nobody hears any more.
    """
    process = worker.process
    told: int | None = None
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    signs, since = 0, time.monotonic()
    spoke = since
    while True:
        ended = process.poll()
        text = (process.stdout.read() or b"").decode(errors="replace")
        now = time.monotonic()
        if text:
            spoke = now
        if text or (now - spoke > QUIET_S and worker.state != told):
            told = worker.state
            say(store, key, text, state=told)
        if ended is not None:
            return ended
        heard = store.add(f"{key}/alive", 0)
        if heard != signs:
            signs, since = heard, now
        elif now - since > SILENT_S:
            return 1
        time.sleep(SAID_S)


def _samples(store: Store, digest: str | None, place: Path) -> str | None:
    """The file of samples, as the driver has it."""
    if digest is None:
        return None
    file = place / "samples.npz"
    file.write_bytes(take(store, f"file/{digest}", FETCH_S))
    return str(file)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
