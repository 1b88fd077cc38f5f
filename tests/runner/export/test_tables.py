"""Every flag and key that is written is one of the framework's, with a value that it takes: by tables of its sources.

The tables (``tables/*.toml``) were read in the named files of the named commits; no framework is needed here.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from steelyard.policies import policy_from_text
from steelyard.results.errors import InputError
from steelyard.runner.cli import run
from steelyard.runner.export.export import export
from steelyard.runner.export.shape import Shape
from steelyard.runner.export.targets import TARGETS
from steelyard.sim.spec import Scenario, scenario_from
from steelyard.sim.view import View, allocate

from .conftest import document

TABLES = {file.stem: tomllib.loads(file.read_text()) for file in (Path(__file__).parent / "tables").glob("*.toml")}
TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "table": dict}


def fits(value: object, rule: Any) -> bool:
    """Whether a parsed value is one that a rule of a table allows."""
    if isinstance(rule, list):
        return value in rule
    if rule.startswith("list["):
        return isinstance(value, list) and all(fits(each, rule[5:-1]) for each in value)
    return isinstance(value, TYPES[rule]) and (rule == "bool" or not isinstance(value, bool))


def parsed(text: str, rule: Any) -> object:
    """A value of the command line, as argparse would take it."""
    return {"int": int, "float": float}.get(rule if isinstance(rule, str) else "", str)(text)


def flags(text: str) -> Iterator[tuple[str, list[str]]]:
    """Flags with their values: what stands on the command line, by words as the shell gives them."""
    words: list[str] = text.split()
    while words:
        flag = words.pop(0)
        assert flag.startswith("--"), f"{flag} belongs to no flag"
        values = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        yield flag, values


def unknown_flags(text: str) -> list[str]:
    """What Megatron-LM would refuse."""
    found = []
    for flag, values in flags(text):
        rule = TABLES["megatron"]["flags"].get(flag)
        if rule is None:
            found.append(f"{flag} is none")
        elif rule == "flag":
            found += [f"{flag} takes no value"] if values else []
        elif len(values) != 1 or not fits(parsed(values[0], rule), rule):
            found.append(f"{flag} {values} is not {rule}")
    return found


def unknown_keys(config: dict[str, Any], rules: dict[str, Any], path: str = "") -> list[str]:
    """What a framework's configuration would refuse."""
    found = []
    for key, value in config.items():
        rule = rules.get(key)
        if rule is None:
            found.append(f"{path}{key} is none")
        elif isinstance(rule, dict):
            found += unknown_keys(value, rule, f"{path}{key}.")
        elif not fits(value, rule):
            found.append(f"{path}{key} = {value!r} is not {rule}")
    return found


def told(name: str, shape: Shape, world: Scenario) -> list[str]:
    """What of a target's files is not in its tables."""
    files = TARGETS[name].files(shape, world)
    if name == "megatron":
        return unknown_flags(files["arguments.txt"]) + unknown_flags(files["model.txt"])
    if name == "torchtitan":
        return unknown_keys(tomllib.loads(files["job.toml"]), TABLES[name]["keys"])
    return unknown_keys(json.loads(files["ds_config.json"]), TABLES[name]["keys"])


def world_of(dtype: str = "bf16", model: str = "gpt2-small", optimizer: str = "adamw") -> Scenario:
    base = document(dtype)
    base["workload"] |= {"model": model, "optimizer": optimizer}
    return scenario_from(base)


def shapes(world: Scenario) -> Iterator[Shape]:
    """Every kind of plan: whole, cut equally and not, interleaved, divided, sharded, recomputed."""
    names, layers = [device.name for device in world.cluster.devices], len(world.workload.layers)
    alone = Shape(groups=tuple(((name,),) for name in names), cuts=(0, layers), sizes=((3,),) * 8, schedule="1f1b")
    for zero in range(4):
        yield dataclasses.replace(alone, zero=zero)
    for recompute in ("none", "selective", "full"):
        yield dataclasses.replace(alone, recompute=recompute)
    for tensor in (1, 2):
        groups = tuple(
            tuple(tuple(names[4 * data + 2 * worker : 4 * data + 2 * worker + tensor]) for worker in range(2))
            for data in range(2)
        )
        piped = Shape(groups=groups, cuts=(0, 5, layers), sizes=((3,) * 4,) * 2, schedule="1f1b")
        for zero in (0, 1):
            yield dataclasses.replace(piped, zero=zero, sequence_parallel=tensor > 1)
        yield dataclasses.replace(piped, cuts=(0, layers // 2, layers))
        quarter = (layers - 2) // 4
        cuts = (0, 1 + quarter, 1 + 2 * quarter, 1 + 3 * quarter, layers)
        yield dataclasses.replace(piped, cuts=cuts, schedule="interleaved")
    one = Shape(groups=(tuple((name,) for name in names[:3]),), cuts=(0, 5, 8, layers), sizes=((2,) * 12,))
    yield dataclasses.replace(one, schedule="1f1b")


WORLDS = [
    world_of(),
    world_of("fp32"),
    world_of("fp16"),
    world_of(model="llama-3-8b"),
    world_of(optimizer="momentum"),
    world_of(optimizer="sgd"),
]


@pytest.mark.parametrize("name", ["megatron", "torchtitan", "deepspeed"])
def test_every_flag_and_key_that_is_written_is_the_frameworks(name: str) -> None:
    seen = 0
    for world in WORLDS:
        for shape in shapes(world):
            try:
                expressible = not TARGETS[name].problems(shape.plan(), world)
            except InputError:  # a dtype or an optimizer that the framework does not have
                continue
            if expressible:
                assert told(name, shape, world) == []
                seen += 1
    assert seen >= 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--no-such-flag 3", "is none"),
        ("--micro-batch-size many", None),
        ("--bf16 yes", "takes no value"),
        ("--optimizer adamw", "is not"),
        ("--micro-batch-size 3 4", "is not"),
    ],
)
def test_the_check_finds_what_it_looks_for(text: str, said: str | None) -> None:
    if said is None:
        with pytest.raises(ValueError, match="many"):
            unknown_flags(text)
    else:
        (found,) = unknown_flags(text)
        assert said in found
    rules = TABLES["torchtitan"]["keys"]
    assert unknown_keys({"training": {"seq_length": 4}}, rules) == ["training.seq_length is none"]
    assert unknown_keys({"training": {"seq_len": True}}, rules)
    assert unknown_keys({"parallelism": {"module_fqns_per_model_part": [["a"], "b"]}}, rules)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_names_where_it_was_read(table: dict[str, Any]) -> None:
    assert ".py" in table["source"]


@pytest.mark.parametrize(
    ("name", "model", "exact"),
    [
        ("megatron", "gpt2-small", True),
        ("megatron", "llama-3-8b", True),
        ("megatron", "bert-base", False),
        ("megatron", "gpt2", False),
        ("megatron", "opt-350m", False),
        ("torchtitan", "llama-3-8b", True),
        ("torchtitan", "gpt2-small", False),
        ("torchtitan", "llama-tiny-text", False),
        ("deepspeed", "bert-base", True),
        ("fsdp", "bert-base", True),
    ],
)
def test_a_model_that_a_framework_cannot_be_told_is_no_exact_export(name: str, model: str, exact: bool) -> None:
    world = world_of(model=model)
    plan = allocate(policy_from_text("grid(zero=3)"), View.of(world), world)
    found = export(plan, world, TARGETS[name])
    assert (not found.unfit) == exact
    assert found.document()["exact"] == (exact and not found.problems)
    if not exact:
        assert found.document()["not_expressible"][0]["path"] == "workload.model"
        assert not found.problems  # the plan can be told all the same, and nothing of it was changed
        assert found.changed == []


def test_what_llama_3_of_its_size_is_not_is_told_apart() -> None:
    """Llama 2 7B is as wide and as deep as Llama 3 8B."""
    world = world_of(model="llama-3-8b")
    config = {**world.workload.model.config, "vocab_size": 32000, "intermediate_size": 11008}
    model = world.workload.model.model_copy(update={"config": config, "name": "llama-2-7b"})
    other = world.model_copy(update={"workload": world.workload.model_copy(update={"model": model})})
    assert not list(TARGETS["torchtitan"].unfit(world))
    assert list(TARGETS["torchtitan"].unfit(other))


def test_exact_refuses_a_model_that_cannot_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "mixed-gpus", "-p", "grid(zero=1)", "--to", "megatron", "-o", str(tmp_path / "out")]
    assert run([*words, "--exact"]) == 2
    assert "workload.model: bert" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(words) == 0
    assert not json.loads((tmp_path / "out" / "export.json").read_text())["exact"]
    assert "not expressible for megatron" in capsys.readouterr().out
