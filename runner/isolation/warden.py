"""The process that removes a launch's groups when the driver was killed before it could.

Run as ``python -m steelyard.runner.isolation.warden FOLDER...``, outside of the groups, in a session of its own. Its
standard input is a pipe from the driver; when that closes, whatever is left in the groups is killed, and they go.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .groups import Group, Place


@contextmanager
def warden(groups: Sequence[Group]) -> Iterator[None]:
    """Have a process watch over some groups; leaving the context lets it remove them, and waits for that."""
    if not groups:
        yield
        return
    words = [f"{group.place.controller}:{group.place.version}:{group.path}" for group in groups]
    with subprocess.Popen(
        [sys.executable, "-m", "steelyard.runner.isolation.warden", *words],
        stdin=subprocess.PIPE,
        start_new_session=True,  # an interrupt from the terminal is the driver's to handle
        cwd="/",
    ) as process:
        try:
            yield
        finally:
            for group in groups:
                group.remove()
            assert process.stdin is not None
            process.stdin.close()


def main(words: Sequence[str]) -> None:
    """Wait for the end of standard input, then remove the groups."""
    groups = []
    for word in words:
        controller, version, path = word.split(":", 2)
        assert controller in ("cpu", "memory")
        place = Place("cpu" if controller == "cpu" else "memory", 1 if version == "1" else 2, Path(path).parent)
        groups.append(Group(place, Path(path)))
    while os.read(0, 1):
        pass
    for group in groups:
        group.remove()


if __name__ == "__main__":
    main(sys.argv[1:])
