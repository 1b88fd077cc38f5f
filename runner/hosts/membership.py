"""Which of the machines this is, as ``torchrun`` says it in the environment, and the store that they share.

The store is a ``TCPStore``. Under ``torchrun`` it is the launcher's, which listens on all interfaces. Where the
variables are set by hand, the first machine opens it on the address in ``MASTER_ADDR`` alone.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil

from ...results.errors import InputError
from .mailbox import Store

JOIN_S = 120.0
"""How long a machine waits for the first one's store."""


@dataclass(frozen=True)
class Membership:
    """One machine's place among all."""

    number: int
    """0 drives."""
    count: int
    local_rank: int
    """Of this process on its machine: the first speaks for it, others have nothing to do."""
    address: str
    port: int
    launcher_store: bool
    """Whether the launcher has opened the store already."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Membership:
        """From ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``.

        Raises:
            InputError: one is missing or no number, or they contradict each other.
        """
        per_machine = _number(environment, "LOCAL_WORLD_SIZE", 1)
        rank, world = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        address = environment.get("MASTER_ADDR", "")
        if not address:
            raise InputError(
                "MASTER_ADDR", "is not set", "start with torchrun, or set it to the first machine's address"
            )
        if per_machine < 1 or world % per_machine or not 0 <= rank < world:
            problem = f"is {rank} of WORLD_SIZE {world} with {per_machine} on a machine"
            raise InputError("RANK", problem, "use the same --nproc-per-node everywhere")
        port = _number(environment, "MASTER_PORT")
        if not 0 < port < 2**16:
            raise InputError("MASTER_PORT", f"is {port}", "a port from 1 to 65535")
        return cls(
            number=rank // per_machine,
            count=world // per_machine,
            local_rank=_number(environment, "LOCAL_RANK", rank % per_machine),
            address=address,
            port=port,
            launcher_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )

    def open_store(self) -> Store:
        """Open the store on the first machine's given address, and on no other; elsewhere join it.

        Raises:
            InputError: the address is not this machine's, or the port is taken.
        """
        if self.number or self.launcher_store:
            return self.join_store()
        try:
            listener = socket.create_server((self.address, self.port), backlog=128)
        except OSError as error:
            problem = f"{self.address}:{self.port} cannot be opened here: {error.strerror or error}"
            raise InputError("MASTER_ADDR", problem, "give an address of the first machine and a free port") from error
        return _store(self.address, self.port, is_master=True, master_listen_fd=listener.detach())  # it closes that

    def join_store(self) -> Store:
        """A connection to the store, for one thread."""
        return join_store(self.address, self.port)


def join_store(address: str, port: int, prefix: str = "") -> Store:
    """A connection of one's own to a store that is open, or will be soon; keys get the prefix."""
    store = _store(address, port, is_master=False)
    if not prefix:
        return store
    prefixed: Store = _distributed().PrefixStore(prefix, store)
    return prefixed


def _store(address: str, port: int, **options: Any) -> Store:
    wait = timedelta(seconds=JOIN_S)
    store: Store = _distributed().TCPStore(address, port, wait_for_workers=False, timeout=wait, **options)
    return store


def lost_store() -> type[Exception]:
    """What a store raises whose machine is gone."""
    found: type[Exception] = _distributed().DistError
    return found


def _distributed() -> Any:
    """``torch.distributed``, whose stores are not among its typed names."""
    return importlib.import_module("torch.distributed")


def interface_towards(address: str) -> str:
    """Name of the interface by which this machine reaches an address: the one that collectives should use.

    Raises:
        InputError: there is no way to it.
    """
    try:
        family, kind, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # a datagram socket sends nothing here: it only chooses its own address
            own = probe.getsockname()[0]
    except OSError as error:
        raise InputError("MASTER_ADDR", f"{address} cannot be reached: {error}", "give the first machine's") from error
    found = (name for name, each in psutil.net_if_addrs().items() if any(one.address == own for one in each))
    return next(found, "lo")


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        mend = "start with torchrun --nnodes N --nproc-per-node 1 -m steelyard.runner.hosts replay ..."
        raise InputError(name, f"is {text!r}" if text else "is not set", mend)
    return int(text)
