"""One machine's part in a study over several.

Run on every machine, by ``torchrun --nnodes N --nproc-per-node 1 ... -m steelyard.runner.hosts VERB SCENARIO ...`` or
with the variables that it sets. The first machine predicts, drives, writes and judges; the words after the module are
those of the command line. The others serve their lanes until it is done, and end as it does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence

from ...results.errors import InputError
from ...sim.checking import first_line
from .membership import Membership, lost_store

VERBS = ("calibrate", "replay", "simulate", "search", "check")
"""What runs across machines: the rest reads and writes files on the machines of the lanes."""
GOODBYE_S = 10.0
"""How long the first machine keeps the store open for the others to hear that it is over."""


def main(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Drive, or serve; the exit code."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # private networks have no names to look up
    try:
        if not words or words[0] not in VERBS:
            raise InputError(
                words[0] if words else "VERB", "does not run across machines", f"one of {', '.join(VERBS)}"
            )
        membership = Membership.read(environment)
        if membership.local_rank:
            return 0
        return _drive(words, membership) if membership.number == 0 else _serve(membership)
    except InputError as error:
        sys.stderr.write(f"steelyard: {error}\n")
        return 2
    except lost_store() as error:  # workers that ran for it end with this process
        sys.stderr.write(f"steelyard: the first machine is gone: {first_line(error)}\n")
        return 1


def _drive(words: Sequence[str], membership: Membership) -> int:
    from ..cli import run
    from .machines import Machines, current

    store = membership.open_store()
    code = 1
    try:
        current.set(Machines.gather(membership, store))
        code = run(list(words))
    finally:
        store.set("over", str(code))
        end = time.monotonic() + GOODBYE_S
        while store.add("goodbye", 0) < membership.count - 1 and time.monotonic() < end:
            time.sleep(0.1)
    return code


def _serve(membership: Membership) -> int:
    from .agent import serve

    store = membership.open_store()
    code = serve(store, membership)
    store.add("goodbye", 1)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
