"""Where a search keeps its trials: in memory, in Optuna's journal file, or in any database that Optuna knows."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..results.errors import InputError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "psycopg": "'psycopg[binary]'"}
"""Import name of a database driver -> what pip calls it, where the two differ."""


@contextmanager
def open_storage(place: str | Path | None) -> Iterator[BaseStorage]:
    """An Optuna storage, open for one search at a time.

    Args:
        place: None (memory), an Optuna URL (``sqlite:///...``, ``postgresql://...``), or the path of a journal file.

    Raises:
        InputError: the URL is wrong, its driver is missing, or the file is no journal, damaged, or in use.
    """
    if place is None:
        from optuna.storages import InMemoryStorage

        yield InMemoryStorage()
    elif "://" in str(place):
        storage = _database(str(place))
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()
    else:
        with ExitStack() as stack:
            yield _journal(Path(place).absolute(), stack)


def _database(url: str) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    shown = url.partition("://")[0] + "://..."  # the rest may hold a password
    try:
        return RDBStorage(url)
    except ImportError as error:
        driver = getattr(error, "name", None) or str(error)
        mend = f"pip install {DRIVERS.get(driver, driver)}"
        raise InputError("storage", f"{shown} needs the driver {driver!r}, which is not installed", mend) from error
    except (SQLAlchemyError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(url, shown)[:160]
        raise InputError("storage", f"{shown} cannot be opened: {reason}", "for example sqlite:///search.db") from error


def _journal(path: Path, stack: ExitStack) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    _refuse_foreign(path)
    stack.callback(_lock(path).close)
    # Optuna's own lock file outlives a killed process, and would stop us for 30 s. We hold ours: theirs is stale.
    for stale in (Path(f"{path}.lock"), *path.parent.glob(f"{glob.escape(path.name)}.lock*.rename")):
        stale.unlink(missing_ok=True)
    cut_to_last_line(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise InputError(str(path), f"is a damaged journal: {error!r:.120}", "give another storage") from error


def cut_to_last_line(path: Path) -> None:
    """Cut a file back to its last newline: a killed process leaves half a line, and the next line would join it."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65_536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


def _refuse_foreign(path: Path) -> None:
    """Refuse a file that Optuna did not write, before a byte of it is changed."""
    if path.is_dir():
        raise InputError(str(path), "is a folder", "give the path of a file, or an Optuna storage URL")
    if not path.exists():
        return
    with path.open("rb") as file:
        first = file.readline(65_536)
    if not first.endswith(b"\n"):  # the very first line may be torn; a journal's starts like this
        ours = b'{"op_code":'.startswith(first[:11])
    else:
        try:
            ours = "op_code" in json.loads(first)
        except (ValueError, TypeError):
            ours = False
    if not ours:
        raise InputError(str(path), "is not a journal of a search", "give another path, or an Optuna storage URL")


def _lock(path: Path) -> IO[bytes]:
    """Hold the journal for this process until the file is closed, or the process ends however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise InputError(str(path), f"cannot be written: {error.strerror}", "give another path") from error
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            mend = "wait for it, or give another storage"
            raise InputError(str(path), "is in use by another search", mend) from error
    return file
