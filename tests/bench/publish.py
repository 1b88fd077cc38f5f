"""Write ``results/scoreboard/`` from a demo and the benchmarks of this host, and the figures of the README from that.

``make publish`` runs it (``ARGS="demo bench"``: these parts alone). With ``--readme`` it only renders the README again
from the scoreboard that is there, which is what a test compares.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sections import README, ROOT, SCOREBOARD, rendered

DATA = ROOT.parent / "shared" / "data"
"""Published measurements, which are no part of the project; without them their scores stay as they are."""
FIGURE = ROOT / "docs" / "figures" / "loop.png"


def main() -> None:
    """Measure and write the parts that are named, :data:`USUAL` without a name; with ``--readme`` only write."""
    if "--readme" not in sys.argv:
        for name in sys.argv[1:] or USUAL:
            PARTS[name]()
    README.write_text(rendered(README.read_text()))


def publish_bench() -> None:
    """Run the benchmarks, and keep their ratios."""
    with tempfile.TemporaryDirectory() as place:
        figures = Path(place) / "bench.json"
        environment = {**os.environ, "STEELYARD_SCOREBOARD": str(figures)}
        run([program("pytest"), "-m", "bench", "-q", "-s", "-p", "no:cacheprovider", "tests/bench"], environment)
        _write("bench.json", {"figures": json.loads(figures.read_text()), **_circumstances()})


def _circumstances() -> dict[str, Any]:
    """When and where something was measured."""
    from steelyard.runner.devices import fingerprint

    return {"date": datetime.now(UTC).date().isoformat(), "host": fingerprint()}


def publish_demo() -> None:
    """Run the demo, and keep what it printed and its figures."""
    document = json.loads(run([program("steelyard"), "demo", "--json"], dict(os.environ)))
    _write("demo.json", condensed(document))
    _write_figure(ROOT / Path(document["report"]).parent / "figures")


def publish_validation() -> None:
    """Score the simulator on published measurements, where they lie beside the project."""
    if DATA.is_dir():
        scores = json.loads(run([program("steelyard"), "validate", str(DATA), "--json"], dict(os.environ)))
        _write("validation.json", {**scores, "date": datetime.now(UTC).date().isoformat()})


def publish_scores(verb: str) -> None:
    """Score policies on clusters and runs that they have not seen."""
    run([program("steelyard"), verb, "score", "--out", str(SCOREBOARD / f"{verb}.json")], dict(os.environ))


def publish_operators() -> None:
    """Score the placing of operators alone, and put it beside the rest of attention's scores, which stays."""
    from steelyard.runner.verbs.output import document_text

    with tempfile.TemporaryDirectory() as place:
        alone = Path(place) / "operators.json"
        no_others = ["--each", "0", "--layers-each", "0"]
        run([program("steelyard"), "attention", "score", *no_others, "--out", str(alone)], dict(os.environ))
        operators = json.loads(alone.read_text())["operators"]
    scores = json.loads((SCOREBOARD / "attention.json").read_text())
    (SCOREBOARD / "attention.json").write_text(document_text({**scores, "operators": operators}))


def publish_suite() -> None:
    """Keep the verdict of the suite that ``steelyard replay --suite`` has measured, without its events and paths."""
    document = json.loads((ROOT / "runs" / "suite-full" / "suite.json").read_text())
    document["cases"] = [
        {key: value for key, value in case.items() if key not in ("folder", "observations")}
        for case in document["cases"]
    ]
    for key in ("report", "plans"):
        document.pop(key)  # a path, and what the cases say too
    _write("suite.json", {**document, **_circumstances()})


PARTS: dict[str, Callable[[], None]] = {
    "bench": publish_bench,
    "demo": publish_demo,
    "attention": lambda: publish_scores("attention"),
    "operators": publish_operators,
    "adaptive": lambda: publish_scores("adaptive"),
    "validation": publish_validation,
    "suite": publish_suite,
}
USUAL = [name for name in PARTS if name not in ("suite", "operators")]
"""Parts that are made without being named: the suite takes an hour, and attention's scores hold those of operators."""


def program(name: str) -> str:
    """A console script of the environment that runs this."""
    return str(Path(sys.executable).with_name(name))


def run(command: list[str], environment: dict[str, str]) -> str:
    """Standard output of a command that must succeed; its other output is shown."""
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def condensed(document: dict[str, Any]) -> dict[str, Any]:
    """The demo's document without paths, with the host it was made on."""
    kept = {key: value for key, value in document.items() if key not in ("report", "folder", "notes")}
    return {**kept, **_circumstances(), "notes": document["notes"]}


def _write(name: str, document: dict[str, Any]) -> None:
    (SCOREBOARD / name).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def _write_figure(figures: Path) -> None:
    """Scatter and the timelines of the simulator's pick, one above the other, as one picture."""
    from PIL import Image

    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    parts = [Image.open(figures / name).convert("RGB") for name in ("scatter.png", "timeline-pick.png")]
    width = max(part.width for part in parts)
    parts = [part.resize((width, round(part.height * width / part.width))) for part in parts]
    whole = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    whole.save(FIGURE, optimize=True)
    shutil.copy(figures / "throughput.png", FIGURE.with_name("throughput.png"))


if __name__ == "__main__":
    main()
