"""Which process works on which device: the rank map, the host file, and the script that starts the processes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...results.errors import InputError
from ...sim.device import Cluster
from .shape import Shape

RANKS, HOSTFILE, LAUNCH = "ranks.json", "hostfile", "launch.sh"
HOST = re.compile(r"[A-Za-z0-9_.:@+-]+")
"""Names of machines that a shell and a host file read as nothing but a name."""


class Rank(NamedTuple):
    """One process: its rank, its device, and what it is in the plan."""

    rank: int
    node: str
    local_rank: int
    """Number of the device in its machine, as the scenario lists them: what LOCAL_RANK means to the frameworks."""
    device: str
    pipeline: int
    worker: int
    tensor: int


def rank_map(shape: Shape, cluster: Cluster) -> list[Rank]:
    """The processes in order of rank: tensor-parallel neighbours first, then data parallel, stages furthest apart.

    That is the order of Megatron-LM (``tp-cp-ep-dp-pp``, the default of ``initialize_model_parallel`` in megatron-core
    0.16.1), of torchtitan's mesh (``pp, dp_replicate, fsdp, tp`` in ``ParallelDims.build_mesh`` of 0.2.2), and of
    DeepSpeed's topology (axes ``pipe, data, model`` of ``PipeModelDataParallelTopology`` in 0.19.8); all were read.
    """
    place = {device.name: (node.name, number) for node in cluster.nodes for number, device in enumerate(node.devices)}
    ranks: list[Rank] = []
    for worker in range(shape.pipeline):
        for pipeline, workers in enumerate(shape.groups):
            for tensor, device in enumerate(workers[worker]):
                node, local = place[device]
                ranks.append(Rank(len(ranks), node, local, device, pipeline, worker, tensor))
    return ranks


def files(shape: Shape, cluster: Cluster, command: str, address: str = "") -> dict[str, str]:
    """``ranks.json``, ``hostfile`` and ``launch.sh``.

    Args:
        shape: gives the ranks.
        cluster: its machines.
        command: what a process runs, in the words of a shell; ``"$here"`` is the folder of the script.
        address: comment on where to start.

    Raises:
        InputError: a name in the cluster would be more than a name to the shell that runs the script.
    """
    ranks = rank_map(shape, cluster)
    _refuse_words(ranks)
    text = json.dumps([rank._asdict() for rank in ranks], indent=1) + "\n"
    return {RANKS: text, HOSTFILE: hostfile(ranks), LAUNCH: launch_script(ranks, command, address)}


def _refuse_words(ranks: Sequence[Rank]) -> None:
    """A scenario comes from anybody, and what is written here is run: its names must not be commands."""
    for rank in ranks:
        if not HOST.fullmatch(rank.node):
            raise InputError("cluster.nodes", f"{rank.node!r} cannot stand in a script", "letters, digits and _.:@+-")
        if not rank.device.isprintable():
            raise InputError("cluster.nodes", f"device {rank.device!r} cannot stand in a script", "give it one line")


def hostfile(ranks: Sequence[Rank]) -> str:
    """One line per machine, ``name slots=n``: what mpirun and DeepSpeed's launcher take."""
    counts: dict[str, int] = {}
    for rank in ranks:
        counts[rank.node] = counts.get(rank.node, 0) + 1
    return "".join(f"{node} slots={count}\n" for node, count in counts.items())


def launch_script(ranks: Sequence[Rank], command: str, note: str) -> str:
    """A shell script that starts the processes of one machine, each with the rank that the plan gives its device.

    ``torchrun`` numbers ranks machine by machine; a plan may number them otherwise (the stages of a pipeline on one
    machine, say), so the variables that ``torch.distributed`` reads are set for each process.
    """
    nodes: dict[str, list[Rank]] = {}
    for rank in ranks:
        nodes.setdefault(rank.node, []).append(rank)
    cases = []
    for node, own in nodes.items():
        starts = "\n".join(f'    start {rank.rank} {rank.local_rank} {len(own)} "$@"  # {rank.device}' for rank in own)
        cases.append(f"  {shlex.quote(node)})\n{starts}\n    ;;")
    return f"""#!/bin/sh
# On every machine: NODE=<its name> MASTER_ADDR=<address of the machine with rank 0> sh launch.sh ...
# Machines: {", ".join(nodes)}. {note}
set -euf  # f: a star in an argument is a star
here=$(cd "$(dirname "$0")" && pwd)
export MASTER_ADDR="${{MASTER_ADDR:?the address of machine {ranks[0].node}}}" MASTER_PORT="${{MASTER_PORT:-29500}}"
export WORLD_SIZE={len(ranks)}
pids=
start() {{
  rank=$1 local=$2 count=$3
  shift 3
  RANK=$rank LOCAL_RANK=$local LOCAL_WORLD_SIZE=$count {command} "$@" &
  pids="$pids $!"
}}
case "${{NODE:?one of the machines}}" in
{chr(10).join(cases)}
  *)
    echo "launch.sh: $NODE is none of the machines" >&2
    exit 2
    ;;
esac
failed=0
for pid in $pids; do wait "$pid" || failed=1; done
exit $failed
"""


def groups_of(text: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The groups of devices that a rank map tells.

    Raises:
        InputError: no such document.
    """
    try:
        ranks: list[dict[str, Any]] = json.loads(text)
        found: dict[tuple[int, int], dict[int, str]] = {}
        for rank in ranks:
            found.setdefault((rank["pipeline"], rank["worker"]), {})[rank["tensor"]] = rank["device"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(RANKS, "is no rank map", "take the one that export wrote") from error
    pipelines, workers = (1 + max(key[axis] for key in found) for axis in (0, 1))
    return tuple(
        tuple(tuple(name for _, name in sorted(found[each, worker].items())) for worker in range(workers))
        for each in range(pipelines)
    )
