"""What the command line turns into one line: a user's own mistake, and a worker that was lost."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the field's path, what is wrong with it, and the mend, in one line.

    The command line prints it and ends with exit code 2; nothing has been written by then.
    """

    def __init__(self, path: str, problem: str, mend: str = "") -> None:
        self.path = path
        self.problem = problem
        self.mend = mend
        super().__init__(path, problem, mend)

    def __str__(self) -> str:
        path = self.path if len(self.path) <= 300 else self.path[:300] + "..."
        line = f"{path}: {self.problem}"
        if self.mend:
            line += f" ({self.mend})"
        line = " ".join(line.split())
        # What the user's file held may be anything; the terminal gets printable characters only.
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


class WorkerFailedError(RuntimeError):
    """A worker process died or hung: which, why, and the end of what it printed; exit code 1."""


class WrongGradientError(WorkerFailedError):
    """Workers' gradients are not a single process's: the runtime is wrong, and not the input."""
