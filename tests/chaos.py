"""Training under many kills, hangs, killed drivers and full disks, in parts of a seed each.

What came of it goes to results/scoreboard/chaos.json.

    python tests/chaos.py --kills 50 --hangs 20 --drivers 5 --disks 5 --parts 2 --seed 0

The scenario is ``chaos.toml`` beside this file: its lanes have quotas, limits of memory and hosts of their own, as far
as this host has them. The result is written after every part, so that an interrupted run says how far it came. Exit
code 1 where anything was lost, changed, misnamed, noticed late on a quiet host, or left behind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steelyard.policies import make_policy
from steelyard.results.store import to_json, write_text
from steelyard.runner.calibrate import calibrate
from steelyard.runner.chaos.chaos import Chaos, chaos
from steelyard.runner.chaos.strikes import KINDS, Sort
from steelyard.runner.isolation.capabilities import Host, this_host
from steelyard.runner.resolving import resolver
from steelyard.sim.spec import apply_setting, read_document, scenario_from

SCOREBOARD = Path(__file__).resolve().parents[1] / "results" / "scoreboard" / "chaos.json"
SCENARIO = Path(__file__).with_name("chaos.toml")
POLICY = "throughput"
"""Leaves no lane out, whatever the all-reduce costs: who trains alone has no link to be cut and nobody to wait for."""
ASKED: dict[Sort, str] = {"kill": "kills", "hang": "hangs", "driver": "drivers", "disk": "disks"}
"""What there is so many of, as the options have it."""
NEEDS = {"cpu_share": "cpu_quota", "memory_limit_gib": "memory_limit"}
"""What lanes ask for, and the capability that it takes."""


def main() -> int:
    """Run, write, and say what came of it."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    words.add_argument("--scenario", default=str(SCENARIO))
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--hangs", type=int, default=20)
    words.add_argument("--drivers", type=int, default=5)
    words.add_argument("--disks", type=int, default=5)
    words.add_argument("--parts", type=int, default=2, help="trainings that the faults are dealt to")
    words.add_argument("--seed", type=int, default=0, help="of the first part; the next ones count on")
    words.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    words.add_argument("--runs", type=Path, default=Path("runs"))
    words.add_argument("--out", type=Path, default=SCOREBOARD)
    chosen = words.parse_args()
    document, folder = read_document(chosen.scenario)
    for setting in chosen.settings:
        apply_setting(document, setting)
    missing = leave_out(document, this_host())
    _say("\n".join(missing))
    calibrate(document, folder, chosen.runs, report=_say)
    resolved = resolver(chosen.runs, force=False, notes=[])(document, folder)
    scenario = scenario_from(resolved, folder)
    parts: list[Chaos] = []
    for number in range(chosen.parts):
        share = {name: _share(getattr(chosen, name), chosen.parts, number) for name in ASKED.values()}
        seed = chosen.seed + number
        found = chaos(scenario, make_policy(POLICY), POLICY, chosen.runs, **share, seed=seed, report=_say)
        parts.append(found)
        _say(found.headline())
        asked = {sort: getattr(chosen, name) for sort, name in ASKED.items()}
        write_text(chosen.out, to_json(summed(parts, asked, missing)))
    problems = [problem for part in parts for problem in part.problems]
    _say("\n".join([*problems, f"wrote {chosen.out}"]))
    return 1 if problems else 0


def leave_out(document: dict[str, Any], host: Host) -> list[str]:
    """Take from a scenario's lanes what this host cannot give; a sentence for each thing that was taken."""
    cluster, missing = document["cluster"], []
    lanes = cluster["lanes"] if isinstance(cluster.get("lanes"), list) else []
    for key, name in NEEDS.items():
        found = host.capability(name)
        if not found.available and any(lane.pop(key, None) is not None for lane in lanes):
            for lane in lanes:
                lane.pop(key, None)
            missing.append(f"without {key}: this host has no {found.title}: {found.reason}")
    found = host.capability("namespaces")
    if not found.available and cluster.pop("hosts", None):
        missing.append(f"without hosts: this host has no {found.title}: {found.reason}")
    return missing


def summed(parts: Sequence[Chaos], asked: Mapping[Sort, int], missing: Sequence[str]) -> dict[str, Any]:
    """What the parts came to together, and each of them."""
    documents = [part.document for part in parts]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "left_out": list(missing),
        "asked": dict(asked),
        "struck": {kind: sum(each["struck"][kind] for each in documents) for kind in asked},
        "struck_kinds": {kind: sum(each["struck_kinds"][kind] for each in documents) for kind in KINDS},
        "busy": sorted({reason for each in documents for reason in each["busy"]}),
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
