"""Profile one device: times of a model's layers by micro-batch size, and the device's own figures. Needs torch alone.

Copy this file to one machine of each kind and run ``python profile_device.py --name a100``. It writes ``a100.json``,
which a scenario's device takes as ``layer_profile = "a100.json#a100"``, and ``a100.toml`` with the entry for the
scenario.

Forward and backward are timed layer by layer within whole passes (CUDA events on GPUs); the optimizer by layer. Where
transformers is installed and the workload names a configuration, the model is its own, else a plain transformer of the
same dimensions. Collectives and copies between the machine's GPUs are timed where there are several.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention, silu

WORKLOAD: dict[str, Any] = {}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARMUP = 2
LEAST = 3
"""Passes of each size that are timed, however long they take."""
FIGURES_SHARE = 0.2
"""Share of the time that the device's own figures get."""
COPIED_BYTES = 256 * 2**20


class Clock:
    """Moments on a device, and the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """Now, in the order of the device's work."""
        if self.device.type == "cuda":
            make: Callable[..., Any] = torch.cuda.Event
            event = make(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def settle(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks, once the work is done."""
        if self.device.type == "cuda":
            return float(start.elapsed_time(end)) * 1e-3
        return float(end - start)


class Times(NamedTuple):
    """Seconds of each layer in one pass: embedding, blocks, head with the loss."""

    forward: list[float]
    backward: list[float]


# ---- models ----


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, sizes: dict[str, Any], *, causal: bool) -> None:
        super().__init__()
        width, heads, groups, inner = (sizes[name] for name in ("hidden", "heads", "groups", "inner"))
        gated: bool = sizes["gated"]
        self.heads, self.groups, self.causal = heads, groups, causal
        self.size = width // heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.pair = nn.Linear(width, 2 * groups * self.size)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, inner * (2 if gated else 1))
        self.down = nn.Linear(inner, width)
        self.gated = gated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attention and MLP, each added to what came in."""
        batch, length, width = x.shape
        y = self.first(x)
        query = self.query(y).view(batch, length, self.heads, self.size).transpose(1, 2)
        key, value = (
            each.reshape(batch, length, self.groups, self.size)
            .transpose(1, 2)
            .repeat_interleave(self.heads // self.groups, dim=1)
            for each in self.pair(y).chunk(2, dim=-1)
        )
        mixed = scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        attended: torch.Tensor = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        inner = self.up(self.second(attended))
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            inner = silu(gate) * inner
        else:
            inner = gelu(inner)
        grown: torch.Tensor = self.down(inner)
        return attended + grown


class Plain(nn.Module):
    """A transformer of given dimensions: embedding, blocks, head."""

    def __init__(self, sizes: dict[str, Any], causal: bool) -> None:
        super().__init__()
        width = sizes["hidden"]
        self.embedding = nn.Embedding(sizes["vocabulary"], width)
        self.blocks = nn.ModuleList(Block(sizes, causal=causal) for _ in range(sizes["blocks"]))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sizes["vocabulary"] if causal else 2, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: torch.Tensor = self.head(x if self.head.out_features > 2 else x.mean(dim=1))
        return logits


def build() -> tuple[nn.Module, str]:
    """The model, and what it is."""
    torch.manual_seed(0)
    causal = WORKLOAD["task"] == "causal-lm"
    try:
        import transformers
    except ImportError:
        return Plain(WORKLOAD["sizes"], causal), "a plain transformer of the model's dimensions"
    if not WORKLOAD["config"].get("model_type"):
        return Plain(WORKLOAD["sizes"], causal), "a plain transformer of the model's dimensions"
    config = transformers.AutoConfig.for_model(**WORKLOAD["config"])
    config.use_cache, config.pad_token_id = False, 0
    for key, value in list(vars(config).items()):
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    family: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    return family.from_config(config), f"transformers {transformers.__version__}"


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model's blocks: the list of modules that holds most of its weights."""
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList)]
    found = max(lists, key=lambda each: sum(weight.numel() for weight in each.parameters()), default=nn.ModuleList())
    return list(found)


# ---- timing ----


class Tracer:
    """Marks the ends of the layers' passes, forward by hooks on the blocks, backward by hooks on what flows between."""

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        self.model, self.clock = model, clock
        self.forward: list[Any] = []
        self.backward: list[Any] = []
        blocks = blocks_of(model)
        blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        for block in blocks:
            block.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen(args[0] if args else kwargs["hidden_states"])

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._seen(output[0] if isinstance(output, tuple) else output)

    def _seen(self, hidden: torch.Tensor) -> None:
        """What a layer hands on: its forward pass is over; once this has a gradient, the next one's backward is."""
        self.forward.append(self.clock.mark())
        hook: Callable[..., Any] = hidden.register_hook
        hook(lambda _: self.backward.append(self.clock.mark()))

    def run(self, ids: torch.Tensor, labels: torch.Tensor) -> Times:
        """One pass, forward and backward."""
        self.forward, self.backward = [], []
        self.clock.settle()
        start = self.clock.mark()
        loss = loss_of(self.model, ids, labels)
        middle = self.clock.mark()
        torch.autograd.backward(loss)
        end = self.clock.mark()
        self.clock.settle()
        forward = self._between([start, *self.forward, middle])
        backward = self._between([middle, *self.backward, end])
        for weight in self.model.parameters():
            weight.grad = None
        return Times(forward, backward[::-1])

    def _between(self, marks: Sequence[Any]) -> list[float]:
        return [self.clock.seconds(early, late) for early, late in itertools.pairwise(marks)]


def loss_of(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy: of the next token, or of a label per sample."""
    answer = model(input_ids=ids)
    logits: torch.Tensor = (answer if isinstance(answer, torch.Tensor) else answer.logits).float()
    if WORKLOAD["task"] == "causal-lm":
        return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return cross_entropy(logits, labels)


def point(tracer: Tracer, size: int, seconds: float) -> dict[str, Any]:
    """Median times of every layer for one micro-batch size, measured for so many seconds."""
    device = tracer.clock.device
    ids = torch.randint(WORKLOAD["sizes"]["vocabulary"], (size, WORKLOAD["sequence_length"]), device=device)
    labels = torch.zeros(size, dtype=torch.long, device=device)
    for _ in range(WARMUP):
        tracer.run(ids, labels)
    passes: list[Times] = []
    end = time.perf_counter() + seconds
    while len(passes) < LEAST or time.perf_counter() < end:
        passes.append(tracer.run(ids, labels))
    return {
        "micro_batch": size,
        "tensor_degree": 1,
        "forward_s": [statistics.median(column) for column in zip(*(each.forward for each in passes), strict=True)],
        "backward_s": [statistics.median(column) for column in zip(*(each.backward for each in passes), strict=True)],
    }


def layers_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """Trainable parameters of each layer: embedding (what comes before the blocks), blocks, head."""
    blocks = blocks_of(model)
    within = {id(weight) for block in blocks for weight in block.parameters()}
    rest = [(name, weight) for name, weight in model.named_parameters() if id(weight) not in within]
    first = [weight for name, weight in rest if any(word in name for word in ("embed", "wte", "wpe", "shared"))]
    head = [weight for _, weight in rest if not any(weight is each for each in first)]
    return [first, *(list(block.parameters()) for block in blocks), head]


def optimizer_times(model: nn.Module, clock: Clock, seconds: float) -> list[float]:
    """Median seconds of the optimizer's step over each layer."""
    found = []
    layers = layers_of(model)
    for weights in layers:
        if not weights:
            found.append(0.0)
            continue
        optimizer = make_optimizer(weights)
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        found.append(repeated(clock, optimizer.step, seconds / len(layers)))
        for weight in weights:
            weight.grad = None
    return found


def make_optimizer(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The workload's optimizer, fused where torch has it."""
    if WORKLOAD["optimizer"] == "adamw":
        return torch.optim.AdamW(weights, fused=True)
    return torch.optim.SGD(weights, lr=1e-3, momentum=0.9 if WORKLOAD["optimizer"] == "momentum" else 0.0)


def repeated(
    clock: Clock, work: Callable[[], Any], seconds: float, choose: Callable[..., float] = statistics.median
) -> float:
    """Median (or another choice) of the seconds of some work, repeated for so long, three times at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST or time.perf_counter() < end:
        clock.settle()
        start = clock.mark()
        work()
        stop = clock.mark()
        clock.settle()
        times.append(clock.seconds(start, stop))
    return choose(times)


# ---- the device's own figures ----


def figures(clock: Clock, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """The best that a product and a copy reach, and the memory."""
    device = clock.device
    size = 4096 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device).to(dtype)
    product = repeated(clock, lambda: a @ a, seconds / 2, min)
    source = torch.zeros(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copy = repeated(clock, lambda: target.copy_(source), seconds / 2, min)
    return {
        "tflops": 2 * size**3 / product / 1e12,
        "memory_bandwidth_gb_per_s": 2 * COPIED_BYTES / copy / 1e9,
        "memory_gib": memory_bytes(device) / 2**30,
    }


def memory_bytes(device: torch.device) -> int:
    """Bytes of the GPU's memory, or of the host's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_name(device: torch.device) -> str:
    """What the driver or the system calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def neighbours(seconds: float) -> tuple[list[dict[str, Any]], float | None]:
    """All-reduces over all GPUs of the machine by size, and bytes per second of a copy between the first two."""
    count = torch.cuda.device_count()
    if count < 2:
        return [], None
    from torch.cuda import nccl

    reduce: Callable[..., Any] = nccl.all_reduce
    points = []
    clock = Clock(torch.device("cuda", 0))
    for power in range(12, 28, 3):
        buffers = [torch.ones(2**power // 4, device=f"cuda:{number}") for number in range(count)]
        reduce(buffers)
        took = repeated(clock, functools.partial(reduce, buffers), seconds / 8)
        points.append({"bytes": 2**power, "seconds": took})
    source, target = (torch.zeros(COPIED_BYTES // 4, device=f"cuda:{number}") for number in (0, 1))
    return points, COPIED_BYTES / repeated(clock, lambda: target.copy_(source), seconds / 8, min)


# ---- files ----


def toml(name: str, file: Path, device: torch.device, own: dict[str, float], source: str) -> str:
    """The entry of the device for a scenario."""
    dtype = WORKLOAD["dtype"]
    return f"""# {device_name(device)}; {source}
[[cluster.nodes]]
name = "{name}-machine"
link = "pcie-4"  # what joins the devices of one machine: see `steelyard list links`

[[cluster.nodes.devices]]
name = "{name}"
count = {max(1, torch.cuda.device_count()) if device.type == "cuda" else 1}
peak_tflops = {{ {dtype} = {own["tflops"]:.4g} }}
memory_gib = {own["memory_gib"]:.4g}
memory_bandwidth_gb_per_s = {own["memory_bandwidth_gb_per_s"]:.4g}
layer_profile = "{file.name}#{name}"
"""


def collectives_toml(points: list[dict[str, Any]], copied: float | None) -> str:
    """The measured collectives for a scenario, and what a copy between two GPUs reached."""
    if not points:
        return ""
    rows = "".join(f"  {{ bytes = {each['bytes']}, seconds = {each['seconds']:.6g} }},\n" for each in points)
    told = f"\n# a copy between two GPUs: {copied / 1e9:.4g} GB/s" if copied else ""
    count = torch.cuda.device_count()
    return f'{told}\n[[cluster.collectives]]\nbackend = "nccl"\nranks = {count}\npoints = [\n{rows}]\n'


def measure(options: argparse.Namespace, device: torch.device) -> tuple[list[dict[str, Any]], str]:
    """Points of the profile, for as long as the time and the memory last."""
    model, what = build()
    model = model.to(device=device, dtype=DTYPES[WORKLOAD["dtype"]]).train()
    clock = Clock(device)
    tracer = Tracer(model, clock)
    began = time.perf_counter()
    each = options.seconds * (1 - FIGURES_SHARE) / (len(options.micro_batches) + 1)
    update = optimizer_times(model, clock, each)
    points: list[dict[str, Any]] = []
    for size in options.micro_batches:
        begin = time.perf_counter()
        left = began + options.seconds * (1 - FIGURES_SHARE) - begin
        if points and left <= 0:
            tell(f"micro-batches from {size} on are left out: --seconds {options.seconds:g} are over")
            break
        try:
            points.append({**point(tracer, size, min(each, left)), "optimizer_s": update})
        except torch.cuda.OutOfMemoryError:
            tell(f"micro-batches from {size} on do not fit into the memory")
            break
        tell(f"micro-batch {size}: {1e3 * sum(points[-1]['forward_s'] + points[-1]['backward_s']):.4g} ms")
    if not points:
        sys.exit("not one micro-batch fits into the memory")
    return points, what


def tell(line: str) -> None:
    """A line for whoever watches."""
    sys.stderr.write(line + "\n")


def sizes_of(text: str) -> list[int]:
    """``1,2,4`` as numbers, each once, rising."""
    sizes = sorted({int(each) for each in text.split(",")})
    if sizes[0] < 1:
        raise argparse.ArgumentTypeError("sizes are from 1")
    return sizes


def main() -> None:
    """Measure, and write the profile and the device's entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="device", help="of the kind of device, in files and scenario")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all measurements")
    parser.add_argument("--micro-batches", type=sizes_of, default=sizes_of("1,2,4,8,16,32,64"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the processor; torch's default if not given")
    parser.add_argument("--out", type=Path, help="profile file; NAME.json by default")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    out = options.out or Path(f"{options.name}.json")
    points, what = measure(options, device)
    own = figures(Clock(device), DTYPES[WORKLOAD["dtype"]], options.seconds * FIGURES_SHARE / 2)
    shared, copied = neighbours(options.seconds * FIGURES_SHARE / 2) if device.type == "cuda" else ([], None)
    source = f"profile_device.py, {what}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    profile = {
        "model": WORKLOAD["model"],
        "sequence_length": WORKLOAD["sequence_length"],
        "dtype": WORKLOAD["dtype"],
        "points": points,
        "tensor_collectives": False,
        "source": f"{source} on {device_name(device)}",
    }
    document = {"schema_version": 1, "profiles": {options.name: profile}, "device": own}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    entry = toml(options.name, out, device, own, source) + collectives_toml(shared, copied)
    out.with_suffix(".toml").write_text(entry, encoding="utf-8")
    tell(f"wrote {out} and {out.with_suffix('.toml')}")


if __name__ == "__main__":
    main()
