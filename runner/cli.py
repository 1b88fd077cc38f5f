"""The command line: every verb is one call of a public function of the same name. Heavy imports happen where used."""

from __future__ import annotations

import errno
import json
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from ..results.errors import InputError, WorkerFailedError
from .adaptive.verbs import adaptive
from .attention.verbs import attention
from .chaos.verbs import chaos
from .export.verbs import export
from .fidelity_verbs import history
from .imports.verbs import import_
from .profiling import profile

app = typer.Typer(
    name="steelyard",
    help="Divide neural-network training work over unequal hardware: simulate, search, replay, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(attention, name="attention")
app.add_typer(adaptive, name="adaptive")
app.command()(chaos)
app.command()(history)
app.command()(export)
app.command(name="import")(import_)
app.command()(profile)

DONE, CRASH, BAD_INPUT, GATE_FAILED, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 4, 130

ScenarioArgument = Annotated[
    str, typer.Argument(help="Scenario file, or the name of a shipped one.", metavar="SCENARIO")
]
RunArguments = Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders.", metavar="RUN...")]
Settings = Annotated[
    list[str], typer.Option("--set", help="Override a field: a.b.c=value. Repeatable.", metavar="KEY=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout; tables go to stderr.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that runs are written to.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of every random draw; the scenario's by default.")]
Force = Annotated[bool, typer.Option("--force", help="Use a calibration of another machine; the run records it.")]
Policies = Annotated[
    list[str],
    typer.Option(
        "--policy", "-p", help="name, name(key=value, ...), module:Class or best.toml; comma-separated, repeatable."
    ),
]
Names = Annotated[
    list[str],
    typer.Option(
        "--policy", "-p", help="Names only (or module:Class): the search sets the parameters. Repeatable; commas too."
    ),
]
Live = Annotated[
    bool | None, typer.Option("--live/--no-live", help="Show the lanes while they run; by default on a terminal.")
]
Budget = Annotated[
    str | None, typer.Option(help="Time for the measurement, as 90s or 5m: spent where the uncertainty is.")
]

RUNS = Path("runs")


def main() -> None:
    """Entry point: errors that are the user's become one line and exit code 2; SIGTERM ends like Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:]))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt  # what unwinds also removes temporary folders and ends workers


def run(arguments: list[str]) -> int:
    """Do what the arguments say and return the exit code: 0, 1, 2, 3, 4 or 130."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    except WorkerFailedError as error:
        return _fail(str(error), CRASH)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the disk"
        return _fail(f"{where}: {error.strerror}; what was complete is kept (make room, then do it again)", CRASH)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; what was complete is kept", INTERRUPTED)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # the parser's own complaints
            return _fail(error.format_message(), BAD_INPUT)
        raise
    if code == INTERRUPTED:  # typer makes Ctrl-C a code; replay returns it with what it completed
        return _fail("interrupted; what was complete is kept", INTERRUPTED)
    return int(code or DONE)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"steelyard: {message}\n")
    return code


# ---- verbs ----


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Scenario file to write; never overwritten.")] = Path("scenario.toml"),
    start: Annotated[str, typer.Option("--from", help="Shipped scenario to start from.")] = "mixed-gpus",
    model: Annotated[
        str | None, typer.Option(help="Also write MODEL.json: a transformers type or config file.")
    ] = None,
) -> None:
    """Write a scenario file to start from, and on request the layers of a transformers model."""
    from ..results.store import write_text
    from ..sim.spec import load_scenario, shipped_names, shipped_text

    if start not in shipped_names("scenarios"):
        load_scenario(start)  # says what is wrong with the name
        raise InputError(
            "--from", f"{start!r} is no shipped scenario", f"one of {', '.join(shipped_names('scenarios'))}"
        )
    content = shipped_text("scenarios", start)
    targets = {file: content}
    if model is not None:
        from .launch import require_torch

        require_torch()
        from .workload import model_from_config, model_text

        name = Path(model).stem
        targets[file.parent / f"{name}.json"] = model_text(model_from_config(model))
        targets[file] = re.sub(r'(?m)^model = ".*"', f'model = "{name}.json"', content)
    for target in targets:
        if target.exists():
            raise InputError(str(target), "exists", "choose another name, or remove it")
    for target, text in targets.items():
        write_text(target, text)
        sys.stdout.write(f"wrote {target}\n")


@app.command()
def check(
    scenario: Annotated[str | None, typer.Argument(help="Scenario file or shipped name.")] = None,
    settings: Settings = [],
    plan: Annotated[Path | None, typer.Option(help="A plan (JSON) to check against the scenario.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a resolved scenario.")] = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
    force: Force = False,
) -> None:
    """Validate a scenario (and a plan for it) without running anything."""
    if schema:
        from ..sim.spec import Scenario

        sys.stdout.write(json.dumps(Scenario.model_json_schema(), indent=1) + "\n")
        return
    if scenario is None:
        raise InputError("SCENARIO", "is missing", "give a scenario file, or --schema")
    loaded, _ = _load(scenario, settings, runs, force)
    if plan is not None:
        from ..sim.plan import Plan
        from ..sim.spec import parse_file

        Plan.parse(parse_file(plan)).check(loaded)
    workload = loaded.workload
    document = {
        "name": loaded.name,
        "devices": [device.name for device in loaded.cluster.devices],
        "parameters": workload.parameters,
        "flops_per_sample": workload.flops_per_sample,
        "gradient_bytes": workload.gradient_bytes,
        "state_bytes": workload.state_bytes,
        "activation_bytes_per_sample": workload.activation_bytes_per_sample,
        "plan_valid": True if plan is not None else None,
    }
    _emit(document, as_json, [{"field": key, "value": value} for key, value in document.items()], "scenario is valid")


@app.command()
def devices(
    lanes: Annotated[Path | None, typer.Option(help="Lane file (TOML) instead of what this host suggests.")] = None,
    as_json: Json = False,
) -> None:
    """List the lanes that this host can offer as torch devices: verified and measured."""
    from .declared import read_lanes
    from .devices import default_lanes, fingerprint
    from .isolation.capabilities import capability_rows
    from .launch import require_torch

    require_torch()
    chosen, offers = default_lanes(read_lanes(lanes) if lanes is not None else ())
    full = max(offer.training_rate for offer in offers)
    rows = [offer.row(full) for offer in offers]
    document = {"host": fingerprint(), "lanes": rows, "default_cluster": [lane.name for lane in chosen]}
    document["capabilities"] = capabilities = capability_rows(offers)
    shown = [
        {
            "lane": row["name"],
            "offered": row["offered"],
            "device": row["summary"],
            "GFLOP/s": row["product_gflop_per_s"],
            "GB/s": row["copy_gb_per_s"],
            "ratio to full": row["ratio_to_full"],
            "why": row["reason"],
        }
        for row in rows
    ]
    _emit(document, as_json, shown, f"default cluster: {', '.join(lane.name for lane in chosen)}")
    can = [{"lanes may ask for": row["title"], "here": row["available"], "why": row["reason"]} for row in capabilities]
    _print(as_json, can, "capabilities")


@app.command()
def calibrate(
    scenario: ScenarioArgument = "demo",
    settings: Settings = [],
    again: Annotated[bool, typer.Option("--again", help="Measure although there is a calibration.")] = False,
    operators: Annotated[
        bool, typer.Option("--operators", help="Time operators instead: for models that never ran here.")
    ] = False,
    from_runs: Annotated[
        list[Path],
        typer.Option("--from-runs", help="Measure nothing: refine the tables by measured runs.", metavar="RUN"),
    ] = [],
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Measure this host's lanes for a scenario's workload; reuse what was measured on this machine before."""
    from .show import progress

    document, folder = _document(scenario, settings)
    from .calibrate import calibrate as measure
    from .calibrate import check_fingerprint
    from .fidelity_verbs import feed_back, time_operators

    console = _console()

    def emit(answer: Any, rows: list[dict[str, Any]], title: str) -> None:
        _emit(answer, as_json, rows, title)

    if operators:
        return time_operators(document, folder, runs, again=again, force=force, report=console.print, emit=emit)
    if from_runs:
        return feed_back(document, folder, runs, from_runs, emit)
    with progress(console, "calibrating") as tick:
        found = measure(document, folder, runs, again=again, force=force, report=console.print, tick=tick)
    if found.reused:
        _say(check_fingerprint(found, force))
    rows = [
        {
            "lane": device.name,
            "micro-batch": point.micro_batch,
            "forward ms": 1e3 * point.forward_s,
            "backward ms": 1e3 * point.backward_s,
        }
        for device in found.cluster.devices
        for point in (device.profile.points if device.profile else [])
    ]
    answer = {
        "path": str(found.path),
        "reused": found.reused,
        "contended_percent": found.contended_percent,
        "cluster": found.cluster.model_dump(mode="json", exclude_none=True),
    }
    _emit(answer, as_json, rows, f"{'reused' if found.reused else 'wrote'} {found.path}")
    return None


@app.command()
def simulate(
    scenario: ScenarioArgument,
    policy: Policies = [],
    plan: Annotated[list[Path], typer.Option(help="A plan (JSON) to simulate as it is. Repeatable.")] = [],
    settings: Settings = [],
    seed: Seed = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Compare under so many seeds: one table, no run folders.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Predict what policies and plans give on a scenario; the policies that it names by default."""
    from ..policies import policies_for
    from ..sim.engine import simulate as predict

    loaded, notes = _load(scenario, settings, runs, force)
    names = _names(policy)
    policies = [*(policies_for(loaded, names) if names or not plan else []), *map(_fixed, plan)]
    if seeds is not None:
        return _studied(loaded, policies, seeds, seed, as_json)
    done: list[Any] = []
    try:
        for each in policies:
            done.append(predict(loaded, each, seed=seed))
    except KeyboardInterrupt:
        _written(done, runs, notes)  # what is complete is kept; a mistake leaves nothing
        raise
    document = {"scenario": loaded.name, "runs": _written(done, runs, notes)}
    _emit_runs(document, as_json, done, f"{loaded.name}: predicted")
    return None


@app.command()
def search(
    scenario: Annotated[
        list[str], typer.Argument(help="Scenario files, or names of shipped ones.", metavar="SCENARIO...")
    ],
    policy: Names = [],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of a resumed study included.")] = 200,
    settings: Settings = [],
    seed: Seed = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL, or a journal file.")] = None,
    sampler: Annotated[str, typer.Option(help="Optuna sampler: tpe, random, nsgaii, qmc, cmaes or gp.")] = "tpe",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that evaluate trials.")] = None,
    objective: Annotated[
        str, typer.Option(help="Objectives, comma-separated: several give a Pareto front. Default: the scenario's.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Simulate the noise of so many seeds.")] = 1,
    robust: Annotated[str | None, typer.Option(help="Over scenarios and seeds: mean (the default) or worst.")] = None,
    pruner: Annotated[
        str, typer.Option(help="Give up hopeless trials: bound, median, percentile, halving or hyperband.")
    ] = "none",
    figures: Annotated[bool, typer.Option("--figures", help="Draw figures, in a folder beside the study.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The winner as a policy file: best.toml, or front.toml.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Look for the policy and parameters that win in simulation; writes best.toml, or the Pareto front."""
    from ..policies.search import search as find
    from ..policies.search_importance import importances as weigh
    from .searching import document, headline, importance_table, study_file, table, write_figures, write_winners
    from .show import progress

    names = _bare(_names(policy)) or None
    loaded = [_load(each, settings, runs, force)[0] for each in scenario]
    arguments: dict[str, Any] = {
        "seed": seed,
        "sampler": sampler,
        "objectives": _names([objective]),
        "seeds": seeds,
        "robust": robust,
        "pruner": pruner,
    }
    place = storage or str(runs / "studies" / study_file(loaded, names, arguments))
    with progress(_console(), "searching") as tick:
        result = find(loaded, policies=names, trials=trials, storage=place, workers=workers, progress=tick, **arguments)
    files, shares = write_winners(result, out), weigh(result)
    drawn = write_figures(result, shares, place, files[0]) if figures else []
    _emit(document(result, shares, [*files, *drawn]), as_json, table(result), headline(result, files[0]))
    if shares:
        _print(as_json, importance_table(shares), "importance of parameters")


@app.command()
def replay(
    scenario: Annotated[
        str | None, typer.Argument(help="Scenario file or shipped name; with --suite, the suite's.", metavar="SCENARIO")
    ] = None,
    policy: Policies = [],
    plan: Annotated[list[Path], typer.Option(help="A plan (JSON) to run as it is. Repeatable.")] = [],
    settings: Settings = [],
    seed: Seed = None,
    budget: Budget = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="Replay a whole suite (full, small or a file), going on where it ended.")
    ] = False,
    live: Live = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> int:
    """Run the plans of policies on this host's lanes, measured against predictions written before."""
    from .replay import replay as measure

    budget_s = _seconds(budget)
    if suite:
        return _suite(scenario or "full", policy, plan, settings, runs, seed, budget_s, as_json)
    if scenario is None:
        raise InputError("SCENARIO", "is missing", "give a scenario, or --suite")
    policies = [*(_policies(policy) if policy or not plan else []), *map(_fixed, plan)]
    loaded, notes = _load(scenario, settings, runs, force)
    console = _console()
    with _following(console, "measuring", live, as_json) as tick:
        study = measure(
            loaded,
            policies,
            runs,
            seed=seed,
            budget_s=budget_s,
            notes=notes,
            report=console.print,
            tick=tick,
        )
    _compared(study.runs, as_json, study.folder)
    return INTERRUPTED if study.interrupted else DONE


@app.command()
def compare(run: RunArguments, as_json: Json = False) -> int:
    """Hold measured runs against the predictions that were made of them: exit code 4 where none was measured."""
    runs = _read(run)
    if all(each.manifest.kind != "measured" for each in runs):
        return _fail("inconclusive: none of the runs was measured (`steelyard replay` measures)", INCONCLUSIVE)
    _compared(runs, as_json, None)
    return DONE


@app.command()
def report(
    run: RunArguments,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for report.html, figures and trace.")] = None,
    as_json: Json = False,
) -> None:
    """Write report.html (one file, works offline), the figures as PNG and a Perfetto trace."""
    from ..results.report import report as write

    target = out or run[0]
    path = write(_read(run), target)
    _emit({"report": str(path)}, as_json, [{"report": str(path)}], "wrote")


@app.command()
def gate(
    run: RunArguments,
    baseline: Annotated[Path, typer.Option(help="Baseline file (JSON).")],
    update: Annotated[bool, typer.Option("--update-baseline", help="Write the baseline from these runs.")] = False,
    tolerance: Annotated[float | None, typer.Option(help="Largest prediction error that passes, in percent.")] = None,
    as_json: Json = False,
) -> int:
    """Compare runs with a baseline: exit code 0 (as before), 3 (regression), 4 (inconclusive)."""
    from ..results.gate import gate as judge

    result = judge(_read(run), baseline, update=update, tolerance_percent=tolerance)
    shown = [
        {
            "run": check.run,
            "metric": check.metric,
            "change %": check.change_percent,
            "verdict": check.verdict,
            "why": check.reason,
        }
        for check in result.checks
    ]
    _emit(result.model_dump(mode="json"), as_json, shown, f"gate: {result.verdict}")
    for note in result.notes:
        _console(stdout=not as_json).print(note, highlight=False)
    return result.exit_code


@app.command()
def whatif(
    scenario: ScenarioArgument,
    vary: Annotated[list[str], typer.Option("--vary", help="Field and values: a.b=1,2,4. Repeatable: the full grid.")],
    policy: Policies = [],
    settings: Settings = [],
    seed: Seed = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Sweep fields of a scenario and show the best policy, throughput, cost and gap to the bound at each point."""
    from ..policies.whatif import whatif as sweep
    from .calibrate import resolver
    from .show import progress

    document, folder = _document(scenario, settings)
    notes: list[str] = []
    with progress(_console(), "sweeping") as tick:
        result = sweep(
            document,
            folder,
            vary,
            policies=_names(policy) or None,
            resolve=resolver(runs, force=force, notes=notes),
            seed=seed,
            progress=tick,
        )
    _say(notes)
    answer = result.document()
    shown = [
        {
            **point["settings"],
            "policy": point["policy"],
            "samples/s": point["throughput_samples_per_s"],
            "usd/M samples": point["cost_usd_per_million_samples"],
            "gap to bound %": None if point["gap_to_bound"] is None else 100 * point["gap_to_bound"],
            "infeasible": point["infeasible"],
        }
        for point in answer["points"]
    ]
    _emit(answer, as_json, shown, str(answer["recommendation"]))


@app.command()
def train(
    scenario: ScenarioArgument = "demo",
    policy: Annotated[str | None, typer.Option("--policy", "-p", help="One policy; makespan by default.")] = None,
    settings: Settings = [],
    folder: Annotated[
        Path | None,
        typer.Option("--resume", help="Go on in this folder of a training, as it was divided (or as --policy says)."),
    ] = None,
    live: Live = None,
    force: Force = False,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Train the classifier on the lanes as a policy divides the work, and evaluate it on held-out texts."""
    from ..policies import policy_from_text
    from .train import resume
    from .train import train as fit

    console = _console()
    if folder is not None:
        other = policy_from_text(policy) if policy else None
        with _following(console, "training", live, as_json) as tick:
            result = resume(folder, policy=other, report=console.print, tick=tick)
    else:
        loaded, notes = _load(scenario, settings, runs, force, real=True)
        chosen = policy_from_text(policy or "makespan")
        with _following(console, "training", live, as_json) as tick:
            result = fit(loaded, chosen, runs, notes=notes, report=console.print, tick=tick)
    document = result.document()
    _emit(document, as_json, result.rows(), result.headline())


@app.command()
def validate(
    data: Annotated[Path, typer.Argument(help="Folder of published measurements (CSV, JSON).")],
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Score the simulator on measurements that others published, next to two baselines; writes validation.json."""
    from .validate import validate as score

    report = score(data, seed=seed, output=runs / "validation.json", console=_console(stdout=not as_json))
    if as_json:
        _emit(report, True, [], "")


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="policies, scenarios, devices, links, models or runs.")],
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> None:
    """List what is shipped, or the runs at hand."""
    from .listing import listing, more

    rows = listing(what, runs)
    shown = [{"name": row["name"], "summary": row["summary"], **more(row), "source": row["source"]} for row in rows]
    _emit(rows, as_json, shown, what)


@app.command()
def show(run: RunArguments, as_json: Json = False) -> None:
    """Show runs: plan, prediction or measurement, and where the time went on each device."""
    from .show import ledger_rows

    read = _read(run)
    document = [
        {
            "manifest": each.manifest.model_dump(mode="json"),
            "plan": each.plan,
            "summary": each.summary.model_dump(mode="json"),
        }
        for each in read
    ]
    _emit_runs(document, as_json, read, "runs")
    _print(as_json, ledger_rows(read), "ms of the mean step")


@app.command()
def demo(
    settings: Settings = [],
    trials: Annotated[int, typer.Option(min=1, help="Search trials.")] = 200,
    budget: Budget = None,
    seed: Seed = None,
    live: Live = None,
    as_json: Json = False,
    runs: RunsFolder = RUNS,
) -> int:
    """Do the whole loop on this machine: calibrate, simulate, search, replay, compare, report."""
    from .demo import MEASURE_S
    from .demo import demo as whole

    console = _console()
    result = whole(
        runs,
        settings=settings,
        trials=trials,
        budget_s=_seconds(budget) or MEASURE_S,
        seed=seed,
        report=console.print,
        bar=lambda title: _following(console, title, live if title == "measuring" else False, as_json),
    )
    _emit(result.document, as_json, result.rows, "")
    if result.by_fidelity:
        _print(as_json, [dict(row) for row in result.by_fidelity], "at each fidelity")
    for line in result.lines:
        _console(stdout=not as_json).print(line, highlight=False)
    return INTERRUPTED if result.interrupted else DONE


# ---- between the verbs and the functions ----


def _following(console: Console, title: str, live: bool | None, as_json: bool) -> Any:
    """Progress on the console: the lanes, where they are wanted and there is a terminal, else how much is done."""
    from .live import live as view
    from .live import wanted
    from .show import progress

    return view(console, title) if wanted(live, console, as_json=as_json) else progress(console, title)


def _console(*, stdout: bool = False) -> Console:
    return Console(stderr=not stdout)


def _emit(document: Any, as_json: bool, rows: list[dict[str, Any]], title: str) -> None:
    """Print a document to stdout and its table to stderr (``--json``), or the table alone to stdout."""
    _print(as_json, rows, title)
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _print(as_json: bool, rows: list[dict[str, Any]], title: str) -> None:
    from .show import print_table

    print_table(_console(stdout=not as_json), rows, title)


def _emit_runs(document: Any, as_json: bool, runs: list[Any], title: str) -> None:
    """The figures of runs, what binds each, and what failures leave of it."""
    from ..results.tables import binding_table, faults_table
    from .show import run_rows

    _emit(document, as_json, run_rows(runs), title)
    _print(as_json, binding_table(runs), "what binds")
    if faults := faults_table(runs):
        _print(as_json, faults, "with failures")


def _document(scenario: str, settings: list[str]) -> tuple[dict[str, Any], Path | None]:
    from ..sim.spec import apply_setting, read_document

    document, folder = read_document(scenario)
    for setting in settings:
        apply_setting(document, setting)
    return document, folder


def _load(scenario: str, settings: list[str], runs: Path, force: bool, *, real: bool = False) -> tuple[Any, list[str]]:
    """The scenario with this host's lanes filled in, and what runs should note about that.

    ``real``: its steps run on them, so what is only simulated is refused, and that before the lanes are calibrated.
    """
    from ..sim.disturbances import refuse_events
    from ..sim.spec import load_scenario
    from .calibrate import resolver

    notes: list[str] = []
    fill_in = resolver(runs, force=force, notes=notes)

    def resolve(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
        if real:
            refuse_events(document)
        return fill_in(document, folder)

    loaded = load_scenario(scenario, settings, resolve)
    _say(notes)  # a search has no record to put them in
    return loaded, notes


def _say(notes: list[str]) -> None:
    """Each note once, on stderr."""
    for note in dict.fromkeys(notes):
        sys.stderr.write(f"steelyard: {note}\n")


def _written(done: list[Any], runs: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Write simulated runs; what the command says of each."""
    from dataclasses import replace

    from ..results.store import code_provenance, write_run

    provenance = {"code": code_provenance()}
    rows = []
    for result in done:
        manifest = result.manifest.model_copy(update={"notes": notes, "provenance": provenance})
        folder = write_run(replace(result, manifest=manifest), runs / manifest.run_id)
        rows.append(
            {
                "run_id": manifest.run_id,
                "folder": str(folder),
                "label": manifest.label,
                "plan": result.plan,
                "summary": result.summary.model_dump(mode="json"),
            }
        )
    return rows


def _read(folders: list[Path]) -> list[Any]:
    from ..results.store import find_runs, read_run

    return [read_run(folder) for folder in find_runs(folders)]


def _names(policy: list[str]) -> list[str]:
    """Policies as texts: split at commas, but for those within parentheses."""
    return [name.strip() for text in policy for name in re.split(r",(?![^()]*\))", text) if name.strip()]


def _fixed(file: Path) -> Any:
    """The policy that answers a plan file; its name tells the runs of several files apart."""
    from ..sim.plan import Plan
    from ..sim.spec import parse_file
    from ..sim.view import Fixed, describe

    plan = Plan.parse(parse_file(file))
    record = describe(Fixed(plan))
    return Fixed(plan, record.model_copy(update={"parameters": {"plan": file.name}}))


def _bare(names: list[str]) -> list[str]:
    """The names, if they are names alone."""
    for name in names:
        if name.endswith(".toml"):
            raise InputError("--policy", f"{name!r} is a policy with its parameters set", "give the policy's name")
        if "=" in name:
            bare = ":".join(part for part in name.partition("(")[0].split(":") if "=" not in part)
            raise InputError("--policy", f"{name!r} sets parameters, which a search does", f"give {bare}")
    return names


def _policies(policy: list[str]) -> list[Any]:
    """The policies of texts; without any, those whose plans the lanes of a host can run."""
    from ..policies import DEFAULTS, policy_from_text

    return [policy_from_text(name) for name in _names(policy) or DEFAULTS]


def _studied(scenario: Any, policies: list[Any], seeds: int, seed: int | None, as_json: bool) -> None:
    from .show import progress
    from .study import study

    with progress(_console(), "simulating") as tick:
        result = study(scenario, policies, seeds=seeds, seed=seed, progress=tick)
    _emit(result.document(), as_json, result.rows(), f"{scenario.name}: {seeds} seeds")
    for line in result.notes():
        _console(stdout=not as_json).print(line, highlight=False)


def _suite(
    name: str,
    policy: list[str],
    plan: list[Path],
    settings: list[str],
    runs: Path,
    seed: int | None,
    budget_s: float | None,
    as_json: bool,
) -> int:
    from .show import progress
    from .suite.verbs import replay_suite

    if policy or plan or settings:
        raise InputError("--suite", "takes no --policy, --plan or --set", "write them into a suite file")
    console = _console()
    result, rows, lines = replay_suite(
        name, runs, seed=seed, budget_s=budget_s, report=console.print, bar=lambda title: progress(console, title)
    )
    _emit(result.document(), as_json, [dict(row) for row in rows], f"suite {result.suite}")
    for line in lines:
        _console(stdout=not as_json).print(line, highlight=False)
    return INTERRUPTED if result.interrupted else DONE


def _compared(runs: list[Any], as_json: bool, folder: Path | None) -> None:
    from ..results.compare import compare as hold
    from ..results.report import headlines, plan_table
    from ..results.store import to_json, write_text
    from ..results.tables import fidelity_table

    comparison = hold(runs)
    document = comparison.model_dump(mode="json")
    if folder is not None:
        write_text(folder / "comparison.json", to_json(document))
        document["folder"] = str(folder)
    _emit(document, as_json, [dict(row) for row in plan_table(comparison)], str(folder or comparison.scenario))
    if by_fidelity := fidelity_table(comparison.plans):
        _print(as_json, [dict(row) for row in by_fidelity], "at each fidelity")
    for line in headlines(comparison):
        _console(stdout=not as_json).print(line, highlight=False)


def _seconds(budget: str | None) -> float | None:
    """Seconds of a budget like 90, 90s or 5m."""
    if budget is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError("--budget", f"is {budget!r}", "a time above zero, as 90s or 5m")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


if __name__ == "__main__":
    main()
