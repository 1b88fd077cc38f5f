"""Training under many kills and hangs, in parts of a seed each; what came of it goes to results/scoreboard/chaos.json.

    python tests/chaos.py --kills 50 --hangs 20 --parts 2 --seed 0

The file is written after every part, so that an interrupted run says how far it came. Exit code 1 where anything was
lost, changed, misnamed or left behind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelyard.policies import make_policy
from steelyard.results.store import to_json, write_text
from steelyard.runner.calibrate import calibrate
from steelyard.runner.chaos.chaos import Chaos, chaos
from steelyard.runner.resolving import resolver
from steelyard.sim.spec import apply_setting, load_scenario, read_document

SCOREBOARD = Path(__file__).resolve().parents[1] / "results" / "scoreboard" / "chaos.json"
SETTINGS = ("training.data=random", "training.checkpoint_every_steps=5")
POLICY = "makespan"


def main() -> int:
    """Run, write, and say what came of it."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    words.add_argument("--scenario", default="demo")
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--hangs", type=int, default=20)
    words.add_argument("--parts", type=int, default=2, help="trainings that the faults are dealt to")
    words.add_argument("--seed", type=int, default=0, help="of the first part; the next ones count on")
    words.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    words.add_argument("--runs", type=Path, default=Path("runs"))
    words.add_argument("--out", type=Path, default=SCOREBOARD)
    chosen = words.parse_args()
    settings = [*SETTINGS, *chosen.settings]
    document, folder = read_document(chosen.scenario)
    for setting in settings:
        apply_setting(document, setting)
    calibrate(document, folder, chosen.runs, report=_say)
    scenario = load_scenario(chosen.scenario, settings, resolver(chosen.runs, force=False, notes=[]))
    parts: list[Chaos] = []
    for number in range(chosen.parts):
        share = {name: _share(getattr(chosen, name), chosen.parts, number) for name in ("kills", "hangs")}
        seed = chosen.seed + number
        found = chaos(scenario, make_policy(POLICY), POLICY, chosen.runs, **share, seed=seed, report=_say)
        parts.append(found)
        _say(found.headline())
        write_text(chosen.out, to_json(summed(parts, {"kill": chosen.kills, "hang": chosen.hangs}, settings)))
    problems = [problem for part in parts for problem in part.problems]
    _say("\n".join([*problems, f"wrote {chosen.out}"]))
    return 1 if problems else 0


def summed(parts: Sequence[Chaos], asked: dict[str, int], settings: Sequence[str]) -> dict[str, Any]:
    """What the parts came to together, and each of them."""
    documents = [part.document for part in parts]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "settings": list(settings),
        "asked": asked,
        "struck": {kind: sum(each["struck"][kind] for each in documents) for kind in asked},
        "bit_identical": all(each["bit_identical"] for each in documents),
        "problems": [problem for part in parts for problem in part.problems],
        **{
            name: sum(each[name] for each in documents)
            for name in ("lost_results", "misnamed", "late", "unplanned_faults", "not_struck")
        },
        "left_behind": [each for own in documents for each in own["left_behind"]],
        "exposed_listeners": [each for own in documents for each in own["exposed_listeners"]],
        "minutes": sum(each["minutes"] for each in documents),
        "parts": documents,
    }


def _share(whole: int, parts: int, number: int) -> int:
    return whole * (number + 1) // parts - whole * number // parts


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
