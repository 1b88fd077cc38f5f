"""What stands on the driver's machine for a worker on another: passes its lines on, and dies when it dies.

Run as ``python -m steelyard.runner.hosts.relay FOLDER RANK`` by :mod:`steelyard.runner.launch` in place of a worker, so
that watching, killing and reading results are the same for both. It sends the job (and the samples, once for all) to
the other machine's :mod:`steelyard.runner.hosts.agent`, shows the worker's state in a byte of its own as a worker does,
and gives a sign of life while it lives; without one the agent kills the worker.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ..worker.signs import State, state_file
from .mailbox import Store, put, put_words, take, take_words
from .membership import join_store

ALIVE_S = 1.0
"""Between two signs of life."""
LOOK_S = 0.05
"""Between two looks for new lines."""
FETCH_S = 60.0


def main() -> None:
    """Have the worker of the given rank run elsewhere, and end as it ends."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with_driver, daemon=True).start()
    job = json.loads((folder / "job.json").read_text())
    place = job["store"]
    store = join_store(place["host"], place["port"])
    key = f"{place['prefix']}/rank/{rank}"
    _order(store, key, job, rank)
    code = pass_on(store, key, state_file(folder / f"rank-{rank}.log"))
    sys.stderr.write(take(store, f"{key}/log", FETCH_S).decode(errors="replace"))
    sys.stderr.flush()
    if code == 0:
        partial = folder / f".rank-{rank}.json"
        partial.write_bytes(take(store, f"{key}/result", FETCH_S))
        partial.rename(folder / f"rank-{rank}.json")
    if code < 0:  # killed by a signal: so the driver sees it here too
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _order(store: Store, key: str, job: dict[str, Any], rank: int) -> None:
    """Send the job to the machine that the lane is on."""
    digest = None
    if job["data"] is not None:
        data = Path(job["data"]).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if not store.check([f"file/{digest}"]):
            put(store, f"file/{digest}", data)
    machine = job["lanes"][rank]["machine"]
    number = store.add(f"orders/{machine}", 1)
    put_words(store, f"order/{machine}/{number}", {"key": key, "rank": rank, "job": job, "file": digest})


def pass_on(store: Store, key: str, file: Path) -> int:
    """Write what the worker writes, and show its state in a file of this machine, until it ends; its exit code."""
    number, sign = 0, 0.0
    state: State | None = None
    while True:
        if time.monotonic() - sign > ALIVE_S:
            sign = time.monotonic()
            store.add(f"{key}/alive", 1)
        if not store.check([f"{key}/said/{number}"]):  # waiting with a timeout would fill the log with warnings
            time.sleep(LOOK_S)
            continue
        words = take_words(store, f"{key}/said/{number}", FETCH_S)
        if words["state"] is not None:
            state = state or State(file)
            state.show(words["state"])
        sys.stdout.write(words["lines"])
        sys.stdout.flush()
        number += 1
        if words["code"] is not None:
            return int(words["code"])


def _end_with_driver() -> None:
    """Block on standard input; its end means that the driver is gone."""
    while os.read(0, 1):
        pass
    os._exit(3)


if __name__ == "__main__":
    main()
