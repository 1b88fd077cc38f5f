"""Attention whose queries are linear in the work, with weights trained by gradient and shipped as a small file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Any, ClassVar

import numpy as np

from ..results.errors import InputError
from ..sim.noise import Floats
from ..sim.plan import Plan
from ..sim.view import View
from ._base import Range, round_shares
from .attention_heads import attend
from .attention_keys import CONTEXT, KEYS, Keys

SCHEMA_VERSION = 1
FILE = "attention-trained.json"
LIMIT = 6.0
"""No weight of a query is larger: the context of a strange cluster must not decide all alone."""


@dataclass(frozen=True, eq=False)
class Weights:
    """What training finds: per head, how the context makes a query; and how it mixes the heads."""

    query: Floats
    """(heads, context, keys and the load)."""
    mix: Floats
    """(context, heads)."""
    rounds: int

    def queries(self, context: Floats) -> Floats:
        """(heads, keys and the load), each within :data:`LIMIT`."""
        return np.asarray(LIMIT * np.tanh(np.einsum("c,hcf->hf", context, self.query) / LIMIT), dtype=np.float64)

    def mixed(self, context: Floats) -> Floats:
        """Weights of the heads, which sum to 1."""
        scores = context @ self.mix
        weights = np.exp(scores - scores.max())
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def document(self) -> dict[str, Any]:
        """As JSON, to six digits; :meth:`parse` reads it."""
        plain = [[[float(f"{value:.6g}") for value in row] for row in head] for head in self.query]
        mix = [[float(f"{value:.6g}") for value in row] for row in self.mix]
        names = {"keys": [*KEYS, "load"], "context": list(CONTEXT)}
        return {"schema_version": SCHEMA_VERSION, **names, "rounds": self.rounds, "query": plain, "mix": mix}

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Weights:
        """Weights of a document.

        Raises:
            InputError: another version, or trained for other keys.
        """
        expected = {"schema_version": SCHEMA_VERSION, "keys": [*KEYS, "load"], "context": list(CONTEXT)}
        for name, value in expected.items():
            if document.get(name) != value:
                raise InputError(f"weights.{name}", f"is {document.get(name)!r}", "train again with this version")
        query, mix = np.array(document["query"], dtype=np.float64), np.array(document["mix"], dtype=np.float64)
        if query.shape != (len(query), len(CONTEXT), len(KEYS) + 1) or mix.shape != (len(CONTEXT), len(query)):
            raise InputError("weights", f"have shapes {query.shape} and {mix.shape}", "train again with this version")
        return cls(query, mix, int(document["rounds"]))


@cache
def shipped() -> Weights:
    """The weights that come with the package."""
    return Weights.parse(json.loads(resources.files("steelyard.policies").joinpath("weights", FILE).read_text("utf-8")))


@dataclass(frozen=True, kw_only=True)
class AttentionTrained:
    """Attention in rounds whose queries depend on the work, with weights trained over many clusters at random."""

    name: ClassVar[str] = "attention-trained"
    source: ClassVar[str] = "softmax attention (Vaswani et al. 2017); trained by `steelyard attention train`"

    data_files: ClassVar[tuple[str, ...]] = (f"weights/{FILE}",)

    temperature: Annotated[float, Range(0.5, 2.0, log=True)] = 1.0
    """Beside the trained one, which is 1."""

    def allocate(self, view: View) -> Plan:
        """The batch attends to the devices, as trained.

        Raises:
            Infeasible: the batch does not fit.
        """
        keys = Keys.of(view)
        return round_shares(keys.view, amounts(keys, shipped(), self.temperature).tolist())


def amounts(keys: Keys, weights: Weights, temperature: float = 1.0) -> Floats:
    """Samples of each device (fractions)."""
    context = keys.context
    return attend(keys, weights.queries(context), weights.mixed(context), temperature, weights.rounds)
