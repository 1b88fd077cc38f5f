"""The exhaustive run: the whole library on very many seeded scenarios; its result goes to results/scoreboard/.

    python tests/exhaust.py --scenarios 100000 --each 2 --seed 0 --workers 2

Exit code 1 where a policy gave an invalid answer; the scenarios that show it are in the file.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from steelyard.policies import REGISTRY
from steelyard.policies.testing.exhaust import Tally, exhaust
from steelyard.results.store import code_provenance, to_json, write_text

SCOREBOARD = Path(__file__).resolve().parents[1] / "results" / "scoreboard" / "exhaust.json"


def main() -> int:
    """Run, write, and say what came of it."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    words.add_argument("--scenarios", type=int, default=100_000)
    words.add_argument("--each", type=int, default=2, help="policies that get each scenario, in turns")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--workers", type=int, default=2)
    words.add_argument("--policy", action="append", help="one of the library; repeatable; all by default")
    words.add_argument("--out", type=Path, default=SCOREBOARD)
    chosen = words.parse_args()
    names, begin = chosen.policy or list(REGISTRY), time.monotonic()
    tally = exhaust(
        names,
        scenarios=chosen.scenarios,
        each=chosen.each,
        seed=chosen.seed,
        workers=chosen.workers,
        progress=lambda done, of: print(f"\r{done} of {of} scenarios", end="", file=sys.stderr, flush=True),
    )
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": chosen.seed,
        "policies": names,
        "policies_per_scenario": min(chosen.each, len(names)),
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "workers": chosen.workers,
        "code": code_provenance(),
        **tally.document(),
    }
    write_text(chosen.out, to_json(document))
    print(f"\n{_said(tally)}; wrote {chosen.out}", file=sys.stderr)
    return 1 if tally.invalid else 0


def _said(tally: Tally) -> str:
    document = tally.document()
    answers = ", ".join(f"{document[f'{name}_total']} {name}" for name in ("plans", "infeasible", "invalid"))
    return f"{tally.scenarios} scenarios: {answers}"


if __name__ == "__main__":
    sys.exit(main())
