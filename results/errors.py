"""The one exception that a user's own mistake raises, wherever it is found."""

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
