"""Graphs of operators at random: what the placing policies are tuned on and judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .drawing import Document, Span, pick, span

Shape = Literal["branches", "layers", "cells"]
Inputs = list[list[int]]
WIDTHS = (256, 512, 1024, 2048)
TOKENS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Graph:
    """What the graphs of a family have in common."""

    shape: Shape
    """``branches``: chains side by side, from a stem or from inputs of their own, to a join. ``layers``: levels of one
    to four operators, each reading some of the level before. ``cells``: cells of branches, one after the other."""
    operators: tuple[int, int]
    """Fewest and most."""
    products: Span = (1, 12)
    """Weight matrices, of width x width, of a product."""
    micro_batches: tuple[int, int] = (1, 1)
    """Fewest and most parts of the batch."""


def graph_document(draws: np.random.Generator, graph: Graph, batch: int, dtype: str) -> Document:
    """A workload of operators that differ in their width and in what binds them: FLOPs, bytes, tokens squared."""
    count = int(draws.integers(graph.operators[0], graph.operators[1] + 1))
    inputs = _inputs(draws, graph.shape, count)
    layers = [{**_operator(draws, graph), "name": f"op{n}", "inputs": [f"op{s}" for s in each]} for n, each in inputs]
    parts = int(draws.integers(graph.micro_batches[0], graph.micro_batches[1] + 1))
    document: Document = {
        "model": {"name": "drawn", "layers": layers},
        "global_batch": max(batch, parts),
        "sequence_length": int(pick(draws, TOKENS)),
        "dtype": dtype,
    }
    return document | ({"max_micro_batch": -(-document["global_batch"] // parts)} if parts > 1 else {})


def _operator(draws: np.random.Generator, graph: Graph) -> Document:
    """A product, elementwise work, or what grows with the square of the tokens; backward, twice as much."""
    width = int(pick(draws, WIDTHS))
    kind = pick(draws, ("matmul", "matmul", "matmul", "elementwise", "attention"))
    weights, kept = 0, span(draws, (2, 12)) * width
    flops, moved = [0.0, 8.0 * width], [0.0, span(draws, (4, 40)) * width]
    if kind == "matmul":
        weights = round(span(draws, graph.products) * width**2)
        flops, moved = [0.0, 2.0 * weights], [0.0, 6.0 * width]
    elif kind == "attention":
        flops, moved = [0.0, 0.0, 4.0 * width], [0.0, 4.0 * width, 2.0]
    one = {"kind": kind, "flops": flops, "elements": moved, "weight_elements": weights}
    two = {**one, "kernels": 2, "flops": [2 * each for each in flops], "elements": [2 * each for each in moved]}
    return {
        "parameters": weights,
        "trainable_parameters": weights,
        "forward": [one],
        "backward": [two],
        "activation_elements": [0.0, kept],
        "output_elements": [0.0, float(width)],
    }


def _inputs(draws: np.random.Generator, shape: Shape, count: int) -> list[tuple[int, list[int]]]:
    """Per operator, its number and those that it reads; the last one reads all that nobody else does."""
    found: Inputs = {"branches": _branches, "layers": _layers, "cells": _cells}[shape](draws, count - 1)
    read = {source for inputs in found for source in inputs}
    return list(enumerate([*found, [number for number in range(len(found)) if number not in read]]))


def _branches(draws: np.random.Generator, count: int) -> Inputs:
    """Chains side by side; in half of the graphs behind a stem."""
    found: Inputs = [[]] if draws.integers(2) else []
    stem = [0] * len(found)
    ways = int(draws.integers(2, 5))
    lengths = [each.size for each in np.array_split(np.arange(count - len(found)), ways)]
    for length in lengths:
        for place in range(length):
            found.append([len(found) - 1] if place else stem)
    return found


def _layers(draws: np.random.Generator, count: int) -> Inputs:
    """Levels; an operator reads one to three of the level before, and one in five times one further back."""
    found: Inputs = []
    before: list[int] = []
    while len(found) < count:
        level = range(len(found), min(count, len(found) + int(draws.integers(1, 5))))
        for _ in level:
            few = min(len(before), int(draws.integers(1, 4)))
            chosen = set(draws.choice(before, size=few, replace=False).tolist()) if before else set()
            if level[0] and draws.random() < 0.2:
                chosen.add(int(draws.integers(level[0])))
            found.append(sorted(chosen))
        before = list(level)
    return found


def _cells(draws: np.random.Generator, count: int) -> Inputs:
    """Each cell's branches, of one or two operators, read the join of the cell before."""
    found: Inputs = [[]]
    while len(found) < count:
        join, ends = len(found) - 1, []
        for _ in range(int(draws.integers(2, 5))):
            found.append([join])
            if draws.integers(2):
                found.append([len(found) - 1])
            ends.append(len(found) - 1)
        found.append(ends)
    return found[:count] if count > 1 else found[:1]
