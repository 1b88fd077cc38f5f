"""Tasks that let a training survive: begin it, anew or where a checkpoint stands, and write checkpoints.

Everything goes through safetensors; nothing is pickled. Each member keeps what it holds: the weights of its stages, and
of the optimizer's states those that are its own (with ZeRO 1 those of its shard), by the weights' places in the model.
Of tensors that are cut among the members (ZeRO 2 and 3) it keeps its piece, and the name says which: ``NAME/1of3``.
Replicas on unlike lanes are equal only up to rounding, because their optimizers use other instructions, so every
member's own bytes are kept (those that are the same, once): what is resumed is what was there, bit by bit.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...sim.noise import stream
from ..checkpoint import DamagedError, Manifest, Store, Stored, read_manifest, read_proven, shared_states, write_durably
from ..checkpoint import Part as Own
from .member import OPTIMIZER_STATES, Member, say
from .parts import Part, at_present, part_of

if TYPE_CHECKING:
    import torch

LOSSES = "losses.safetensors"
WRITTEN = struct.Struct("<?32sQ32sQdd")
"""What members tell each other of a checkpoint: written or not; digest and length of the state (zeros: another wrote
it) and of the random states; seconds computed and trained."""
NOTHING = (bytes(32), 0)


def begin(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Stand where a checkpoint stands, or at the very beginning, with random numbers of the member's own."""
    part, folder = part_of(member, task), task["checkpoint"] and Path(task["checkpoint"])
    if task["division"] is not None:
        member.division, member.asks = task["division"], task["asks"]
        member.group(range(member.world))
    if part is not None and folder is not None:
        restore(member, part, folder, task)
    else:
        seed_random(member, task["seed"], task["step"])
    if part is None and folder is not None:  # it may be given a part later
        manifest = read_manifest(folder)
        member.losses, member.busy_s = losses_of(folder, manifest), computed_s(member, manifest)
    if part is not None or member.division is not None:
        say(f"begun {task['step']}")
    return {}


def checkpoint(member: Member, task: dict[str, Any]) -> dict[str, Any]:
    """Write a checkpoint together; where one member cannot, there is none, and the training goes on."""
    task = at_present(member, task)
    ranks: list[int] = task["ranks"]
    part = part_of(member, task)
    start = member.now()
    absent_busy_s: dict[str, float] = {}
    if member.division is not None:
        everybody = range(member.world)
        share_losses(member, everybody)
        computed = gathered(member, everybody, struct.pack("<d", member.busy_s))
        absent = [rank for rank in everybody if rank not in ranks]
        lanes = member.job["lanes"]
        absent_busy_s = {lanes[rank]["name"]: struct.unpack("<d", computed[rank])[0] for rank in absent}
    elif part is not None:
        share_losses(member, ranks)
        absent_busy_s = member.absent_busy_s
    if part is None:
        return {}
    state, random = state_bytes(member, part), random_bytes(member)
    digests = gathered(member, ranks, hashlib.sha256(state).digest())
    writers = [ranks[first] for first in shared_states(digests)]
    store = Store(Path(task["folder"]), task["keep"])
    own = write_own(member, store, task["step"], state if member.rank in writers else None, random)
    told = [WRITTEN.unpack(each) for each in gathered(member, ranks, own)]
    if member.rank == ranks[0]:
        if all(each[0] for each in told) and commit(
            member, store, {**task, "absent_busy_s": absent_busy_s}, writers, told
        ):
            say(f"saved {task['step']} {member.now() - start:.6f}")
        else:
            store.abandon(task["step"])
    return {}


def write_own(member: Member, store: Store, step: int, state: bytes | None, random: bytes) -> bytes:
    """Write this member's files, and pack what the others must know of them."""
    place = store.partial(step)
    try:
        place.mkdir(parents=True, exist_ok=True)
        kept = _packed(write_durably(place / state_file(member.rank), state)) if state is not None else NOTHING
        drawn = _packed(write_durably(place / random_file(member.rank), random))
    except OSError as error:
        say(f"unsaved {step} {error.strerror}")
        return WRITTEN.pack(False, *NOTHING, *NOTHING, 0.0, 0.0)
    return WRITTEN.pack(True, *kept, *drawn, member.busy_s, member.train_s)


def commit(
    member: Member, store: Store, task: dict[str, Any], writers: Sequence[int], told: Sequence[tuple[Any, ...]]
) -> bool:
    """Write the losses and the manifest, and make the checkpoint one; False where that fails."""
    from safetensors.torch import save

    ranks, step = task["ranks"], task["step"]
    parts, files = [], {}
    for rank, writer, (_, state, state_length, drawn, drawn_length, busy_s, train_s) in zip(
        ranks, writers, told, strict=True
    ):
        lane = member.job["lanes"][rank]["name"]
        names = state_file(writer), random_file(rank)
        parts.append(Own(rank=rank, lane=lane, state=names[0], random=names[1], busy_s=busy_s, train_s=train_s))
        files[names[1]] = Stored(sha256=drawn.hex(), bytes=drawn_length)
        if rank == writer:
            files[names[0]] = Stored(sha256=state.hex(), bytes=state_length)
    try:
        files[LOSSES] = write_durably(store.partial(step) / LOSSES, save({"losses": _fp64(member.losses)}))
        position = step * member.job["global_batch"]
        store.commit(
            Manifest(
                step=step,
                next_sample=position,
                parts=parts,
                losses=LOSSES,
                files=files,
                absent_busy_s=task["absent_busy_s"],
                **task["identity"],
            )
        )
    except OSError as error:
        say(f"unsaved {step} {error.strerror}")
        return False
    return True


def restore(member: Member, part: Part, folder: Path, task: dict[str, Any]) -> None:
    """Take weights, optimizer, random states and losses from a checkpoint.

    Where the task says ``replanned``, the members hold other things than when it was written. Each then takes what it
    holds from the first of those that held it, whom the others equal up to rounding; random numbers begin anew.

    Raises:
        DamagedError: the checkpoint has changed since the driver proved it, or lacks something.
    """
    manifest, ranks, replanned = read_manifest(folder), task["ranks"], task["replanned"]
    own = next((each for each in manifest.parts if each.rank == member.rank), None)
    sources = manifest.parts if replanned or own is None else [own]
    load_state(member, part, collected(folder, manifest, [each.state for each in sources], needed(member, part)))
    if replanned or own is None:
        seed_random(member, task["seed"], manifest.step)
    else:
        load_random(member, read_proven(folder / own.random, manifest.files[own.random]))
    member.busy_s = computed_s(member, manifest)
    present = {member.job["lanes"][rank]["name"] for rank in ranks}
    known = {**manifest.absent_busy_s, **{each.lane: each.busy_s for each in manifest.parts}}
    member.absent_busy_s = {lane: busy_s for lane, busy_s in known.items() if lane not in present}
    member.train_s = max(each.train_s for each in manifest.parts)
    member.losses = losses_of(folder, manifest)


def collected(folder: Path, manifest: Manifest, files: Iterable[str], names: Set[str]) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, each from the first of some files that has it; the rest is not read.

    What the files have cut otherwise than it is asked for is put together and cut again.

    Raises:
        DamagedError: a file has changed since the driver proved it, or none of them has one of the tensors.
    """
    from safetensors.torch import load

    found: dict[str, torch.Tensor] = {}
    files = list(dict.fromkeys(files))
    for file in files:
        if missing := names - found.keys():
            tensors = load(read_proven(folder / file, manifest.files[file]))
            found.update({name: tensors[name] for name in missing & tensors.keys()})
    if missing := names - found.keys():
        found.update(recut((load(read_proven(folder / file, manifest.files[file])) for file in files), missing))
    if missing := names - found.keys():
        raise DamagedError(f"{folder}: has no {min(missing)}")
    return found


def recut(files: Iterable[Mapping[str, torch.Tensor]], names: Set[str]) -> dict[str, torch.Tensor]:
    """Tensors that some files have in other pieces, or whole, or of which a whole is asked for; as far as they can."""
    pieces: dict[str, dict[str, torch.Tensor]] = {name.partition("/")[0]: {} for name in names}
    for tensors in files:
        for name, tensor in tensors.items():
            base, _, piece = name.partition("/")
            if base in pieces:
                pieces[base].setdefault(piece, tensor)
    wholes = {base: joined(each) for base, each in pieces.items() if each}
    asked = {name: name.partition("/") for name in names}
    return {
        name: cut(whole, piece) for name, (base, _, piece) in asked.items() if (whole := wholes.get(base)) is not None
    }


def joined(pieces: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """A tensor of its pieces along the first dimension (``""``: the whole one); None where one is missing."""
    import torch

    if "" in pieces:
        return pieces[""]
    count = int(next(iter(pieces)).partition("of")[2])
    found = [pieces.get(f"{number}of{count}") for number in range(count)]
    known = [each for each in found if each is not None]
    return torch.cat(known) if len(known) == count else None


def cut(tensor: torch.Tensor, piece: str) -> torch.Tensor:
    """A piece of a tensor, as ``fully_shard`` cuts it: equal ones along the first dimension, but for the last ones."""
    if not piece:
        return tensor
    number, _, count = piece.partition("of")
    chunks = tensor.chunk(int(count))
    return chunks[int(number)] if int(number) < len(chunks) else tensor[:0]


def computed_s(member: Member, manifest: Manifest) -> float:
    """Seconds that a member's lane had computed when a checkpoint was written."""
    own = next((each.busy_s for each in manifest.parts if each.rank == member.rank), None)
    return manifest.absent_busy_s.get(member.lane["name"], 0.0) if own is None else own


def losses_of(folder: Path, manifest: Manifest) -> list[float]:
    """The losses in a checkpoint.

    Raises:
        DamagedError: their file has changed since the driver proved it.
    """
    from safetensors.torch import load

    tensors = load(read_proven(folder / manifest.losses, manifest.files[manifest.losses]))
    losses: list[float] = tensors["losses"].tolist()
    return losses


def share_losses(member: Member, ranks: Sequence[int]) -> None:
    """Sum the members' parts of each loss since the last checkpoint, in the order of ranks; all members learn them."""
    parts = struct.pack(f"<{len(member.loss_parts)}d", *member.loss_parts)
    of_all = [struct.unpack(f"<{len(member.loss_parts)}d", each) for each in gathered(member, ranks, parts)]
    member.losses += [sum(each) for each in zip(*of_all, strict=True)]
    member.loss_parts.clear()


def gathered(member: Member, ranks: Sequence[int], data: bytes) -> list[bytes]:
    """What each of the members says, all equally many bytes, in the order of ranks."""
    import torch
    import torch.distributed as dist

    if len(ranks) == 1 or not data:
        return [data] * len(ranks)
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(member.device)
    found = [torch.empty_like(own) for _ in ranks]
    say("waits")
    with member.state.waits():
        dist.all_gather(found, own, group=member.groups[tuple(ranks)])
    return [bytes(each.cpu().numpy()) for each in found]


# ---- between a member and bytes ----


def state_bytes(member: Member, part: Part) -> bytes:
    """Weights, buffers and the optimizer's state as one safetensors document; equal states give equal bytes."""
    from safetensors.torch import save

    tensors = {f"model.{name}": tensor for name, tensor in held(member, part).items()}
    optimizer = own_optimizer(part)
    for place, weight in updated(member, part).items():
        for name, value in optimizer.state[weight].items() if weight in optimizer.state else ():
            if value is not None:  # a momentum that has not begun
                tensors[f"optimizer.{place}.{name}"] = value
    return save({name + piece_of(tensor): _own_copy(_here(tensor)) for name, tensor in tensors.items()})


def load_state(member: Member, part: Part, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what :func:`state_bytes` took, by name; the gradients' buffer stays where it is."""
    import torch

    optimizer, weights = own_optimizer(part), updated(member, part)
    optimizer.state.clear()
    with torch.no_grad():
        for name, target in held(member, part).items():
            _here(target).copy_(tensors[f"model.{name}{piece_of(target)}"])
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")[0].partition(".")
            if kind == "optimizer":
                place, _, key = rest.partition(".")
                weight = weights[int(place)]
                state = tensor.to(weight.device)
                if "/" in name:
                    piece, state = state, torch.zeros_like(weight)
                    _here(state).copy_(piece)
                optimizer.state[weight][key] = state


def needed(member: Member, part: Part) -> set[str]:
    """Names of all that :func:`state_bytes` gives of a member after a step."""
    model = {f"model.{name}{piece_of(tensor)}" for name, tensor in held(member, part).items()}
    kept = OPTIMIZER_STATES[member.job["optimizer"]]
    return model | {
        f"optimizer.{place}.{key}{'' if key == 'step' else piece_of(weight)}"
        for place, weight in updated(member, part).items()
        for key in kept
    }


def held(member: Member, part: Part) -> dict[str, torch.Tensor]:
    """The model's weights and buffers by name, but for the weights that others hold; with ZeRO 2 and 3 the copy's.

    Buffers are kept by all: the families whose layers are cut have none that training changes.
    """
    others = {id(weight) for weight in member.weights} - {id(weight) for weight in part.weights}
    found: dict[str, torch.Tensor] = getattr(part, "model", member.model).state_dict(keep_vars=True)
    return {name: tensor for name, tensor in found.items() if id(tensor) not in others}


def own_optimizer(part: Part) -> torch.optim.Optimizer:
    """What keeps the states that a member has: with ZeRO 1, the optimizer of its own shard within the other."""
    return getattr(part.optimizer, "optim", part.optimizer)


def updated(member: Member, part: Part) -> dict[int, torch.nn.Parameter]:
    """The weights that a member's own optimizer updates, by their places in the model."""
    own = {id(weight) for group in own_optimizer(part).param_groups for weight in group["params"]}
    in_order: list[torch.nn.Parameter] = getattr(part, "parameters", member.weights)
    return {place: weight for place, weight in enumerate(in_order) if id(weight) in own}


def piece_of(tensor: torch.Tensor) -> str:
    """What the name of a tensor's piece ends in; nothing of a whole one."""
    # To ask for torch's class of cut tensors would load what most plans have no use for.
    mesh = getattr(tensor, "device_mesh", None)
    return f"/{mesh.get_local_rank()}of{mesh.size()}" if mesh is not None else ""


def random_bytes(member: Member) -> bytes:
    """The states of torch's random number generators."""
    import torch
    from safetensors.torch import save

    states = {"cpu": torch.get_rng_state()}
    if member.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(member.device)
    return save(states)


def load_random(member: Member, data: bytes) -> None:
    """Put back what :func:`random_bytes` took."""
    import torch
    from safetensors.torch import load

    states = load(data)
    torch.set_rng_state(states["cpu"])
    if member.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], member.device)


def seed_random(member: Member, seed: int, step: int) -> None:
    """Random numbers of this member's own stream, from a step on."""
    import torch

    torch.manual_seed(int(stream(seed, "dropout", member.rank, step).integers(2**63)))


def state_file(rank: int) -> str:
    """Name of the file with a member's weights and optimizer."""
    return f"state-{rank}.safetensors"


def random_file(rank: int) -> str:
    """Name of the file with a member's random states."""
    return f"random-{rank}.safetensors"


def _here(tensor: torch.Tensor) -> torch.Tensor:
    """The piece of a cut tensor that this member has; any other as it is."""
    piece: torch.Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return piece


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, in memory of its own: safetensors refuses tensors that share theirs, as tied weights do."""
    return tensor.detach().cpu().contiguous().clone()


def _fp64(values: Sequence[float]) -> torch.Tensor:
    import torch

    return torch.tensor(list(values), dtype=torch.float64)


def _packed(stored: Stored) -> tuple[bytes, int]:
    return bytes.fromhex(stored.sha256), stored.bytes


TASKS = {"begin": begin, "checkpoint": checkpoint}
