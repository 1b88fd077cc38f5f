"""The command line: every verb is one call of a public function of the same name. Heavy imports happen where used."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from ..results.errors import InputError, WorkerFailedError
from .adaptive.verbs import adaptive
from .attention.verbs import attention
from .chaos.verbs import chaos
from .export.verbs import export
from .imports.verbs import import_
from .profiling import profile
from .verbs import lanes, predictions, replays, scenarios, searches, shelves, verdicts
from .verbs.output import BAD_INPUT, CRASH, DONE, INTERRUPTED, fail

VERBS: dict[str, Callable[..., Any]] = {
    "chaos": chaos,
    "history": verdicts.history,
    "export": export,
    "import": import_,
    "profile": profile,
    "init": scenarios.init,
    "check": scenarios.check,
    "devices": lanes.devices,
    "calibrate": lanes.calibrate,
    "simulate": predictions.simulate,
    "search": searches.search,
    "replay": replays.replay,
    "compare": verdicts.compare,
    "report": verdicts.report,
    "gate": verdicts.gate,
    "whatif": predictions.whatif,
    "train": replays.train,
    "validate": verdicts.validate,
    "list": shelves.list_,
    "show": shelves.show,
    "demo": replays.demo,
}
"""In the order in which ``--help`` lists them."""

app = typer.Typer(
    name="steelyard",
    help="Divide neural-network training work over unequal hardware: simulate, search, replay, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _verb in VERBS.items():
    app.command(name=_name)(_verb)
app.add_typer(attention, name="attention")
app.add_typer(adaptive, name="adaptive")


def main() -> None:
    """Entry point: errors that are the user's become one line and exit code 2; SIGTERM ends like Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:]))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt  # what unwinds also removes temporary folders and ends workers


def run(arguments: list[str]) -> int:
    """Do what the arguments say and return the exit code: 0, 1, 2, 3, 4 or 130."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except InputError as error:
        return fail(str(error), BAD_INPUT)
    except WorkerFailedError as error:
        return fail(str(error), CRASH)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the disk"
        return fail(f"{where}: {error.strerror}; what was complete is kept (make room, then do it again)", CRASH)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted; what was complete is kept", INTERRUPTED)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the parser's own complaints
            return fail(error.format_message(), BAD_INPUT)
        raise
    if code == INTERRUPTED:  # typer makes Ctrl-C a code; replay returns it with what it completed
        return fail("interrupted; what was complete is kept", INTERRUPTED)
    return int(code or DONE)


if __name__ == "__main__":
    main()
