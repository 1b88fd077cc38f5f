"""The README's sections, made from what lies in ``results/scoreboard/``; nothing is measured here."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCOREBOARD = ROOT / "results" / "scoreboard"
README = ROOT / "README.md"


def rendered(text: str) -> str:
    """The README with each marked section made anew from the scoreboard."""
    demo = json.loads((SCOREBOARD / "demo.json").read_text())
    bench = json.loads((SCOREBOARD / "bench.json").read_text())
    scores = json.loads((SCOREBOARD / "validation.json").read_text())
    for name, lines in (
        ("demo", demo_lines(demo)),
        ("scenarios", scenario_lines()),
        ("published", published_lines(scores)),
        ("bench", bench_lines(bench)),
        ("attention", attention_lines(json.loads((SCOREBOARD / "attention.json").read_text()))),
        ("adaptive", adaptive_lines()),
        ("exhaust", exhaust_lines()),
        ("suite", suite_lines()),
        ("chaos", chaos_lines()),
        ("validated", validated_lines(demo)),
    ):
        body = "\n".join(lines)
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
        )
    return text


def demo_lines(demo: dict[str, Any]) -> list[str]:
    """The table of plans, and the verdict over them."""
    from steelyard.results.agreement import LEAST_LAUNCHES

    lines = [
        "| policy | samples | predicted ms (80 % of launches) | measured ms (80 %) | error | gap to the bound |",
        "|---|---|---|---|---|---|",
    ]
    for plan in demo["plans"]:
        predicted, measured = plan["predicted"], plan["measured"]
        name = f"{plan['policy']}, again (A/A)" if plan["twin_of"] else plan["policy"]
        samples = "+".join(str(each) for each in plan["plan"].values())
        lines.append(
            f"| {name} | {samples} | {_ms(predicted['p50_s'], predicted['interval_s'])} "
            f"| {_ms(measured['median_s'], measured['interval_s'])} | {plan['error_percent']:+.1f} % "
            f"| {100 * (measured['median_s'] / plan['lower_bound_step_time_s'] - 1):.0f} % |"
        )
    tau = "-" if demo["kendall_tau"] is None else f"{demo['kendall_tau']:.2f}"
    judged = "" if demo["coverage_judged"] else f", not judged: {demo['coverage_count']} observations"
    lines += [
        "",
        f"Mean absolute error {demo['mape_percent']:.1f} %, worst {demo['worst_error_percent']:.1f} %, "
        f"rank agreement τ {tau} ({demo['kendall_pairs']} of {demo['kendall_pairs_total']} pairs), "
        f"regret {demo['regret_percent']:.1f} %, coverage {demo['coverage_percent']:.0f} %{judged}, "
        f"noise floor {demo['noise_floor_percent']:.1f} %, speed-up over uniform {demo['speedup_over_uniform']:.2f}; "
        f"{demo['search_trials']} trials at {demo['search_trials_per_s']:.0f} per second. "
        + ("**The host was busy or noisy.**" if demo["busy"] else "The host was quiet."),
    ]
    if not demo["judged"]:
        lines[-1] += f" **Not judged: {demo['launches']} launches, and it takes {LEAST_LAUNCHES}.**"
    if steady := demo.get("steadied"):
        what = "Predicted anew between each launch's gauge and its plans" if steady.get("foretold") else "Without drift"
        lines[-1] += (
            f" {what}: "
            f"mean absolute error {steady['mape_percent']:.1f} %, "
            f"worst {steady['worst_error_percent']:.1f} %, coverage {steady['coverage_percent']:.0f} %"
            + (f", mean width {width:.1f} %." if (width := steady.get("interval_width_percent")) is not None else ".")
        )
    if scores := demo.get("fidelities"):
        told = "; ".join(
            f"`{each['fidelity']}` {each['mape_percent']:.1f} % (worst {each['worst_error_percent']:.1f} %)"
            for each in scores
        )
        lines[-1] += f" Mean absolute error by fidelity: {told}."
    return lines


def scenario_lines() -> list[str]:
    """The shipped scenarios, each with the question it asks."""
    files = sorted((ROOT / "sim" / "scenarios").glob("*.toml"))
    summaries = {file.stem: tomllib.loads(file.read_text())["summary"] for file in files}
    return ["| scenario | asks |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in summaries.items())]


def published_lines(scores: dict[str, Any]) -> list[str]:
    """Errors on held-out rows, next to the baselines', and how much of the catalog was looked up."""
    lines = [
        "| measurements | held out | rows | mean error | median | p90 | worst | τ | regret | mean error of baselines |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for score in scores["scores"]:
        model = score["model"]
        figures = [f"{model[key]:.1f}" for key in ("mape", "median", "p90", "worst")]
        ranks = ["-" if model[key] is None else f"{model[key]:.2g}" for key in ("tau", "regret")]
        others = ", ".join(f"{name} {each['mape']:.1f}" for name, each in score["baselines"].items())
        lines.append(
            f"| {score['data']} | {score['split']} | {score['rows']} | {' | '.join(figures + ranks)} | {others} |"
        )
    catalog = scores["catalog"]
    return [
        *lines,
        "",
        f"On {scores['date']}. Of the catalog's {catalog['figures']} figures, {catalog['recalled']} are recalled and "
        "not looked up; every other names the source that was read.",
    ]


EXACT_BY = {
    1: "which is exact by the cost model over all sets of devices up to eight and over some beyond, and does not "
    "reckon with overlap: past that, more than 100 % is possible.",
    2: "which is exact by the engine's own step, over all sets of devices where at most 512 differ, else over some.",
}
"""By the version of the file: what its 100 % are."""


def attention_lines(score: dict[str, Any]) -> list[str]:
    """Shares of the exact split's throughput on clusters that attention has not seen, all together and by family."""
    labels = [row["policy"] for row in score["rows"] if row["policy"].startswith("attention")]
    lines = [*_share_rows(score["rows"]), "", *_family_rows(score["families"], labels)]
    lines += [
        "",
        f"{score['scenarios']} held-out clusters of 4 devices and more, simulated by the engine, on {score['date']} by "
        f"`{score['made_by']}`; 100 % is `makespan`, {EXACT_BY[score['schema_version']]}",
    ]
    if "layers" in score:
        layers = score["layers"]
        about = (
            f"Layers over the devices of one pipeline: {layers['scenarios']} held-out clusters of 4 to 8 devices, by "
            "the same command; 100 % is `cut-exact`, 0 % is a refusal."
        )
        lines += ["", about, "", *_share_rows(layers["rows"])]
    return [*lines, *(operator_lines(score["operators"]) if "operators" in score else [])]


def operator_lines(score: dict[str, Any]) -> list[str]:
    """Operators of graphs: small ones against the exact placement, large ones against the best that is known."""
    small, large = score["small"], score["large"]
    proven = "all" if small["proven"] == small["scenarios"] else str(small["proven"])
    lines = [
        "",
        f"Operators of a graph over 4 to 6 devices: {small['scenarios']} held-out graphs of 7 to 9 operators, on "
        f"{score['date']} by `{score['made_by']}`; 100 % is the fastest placement of the whole batch at once by the "
        f"engine (branch and bound, {proven} of them proven within 0.01 %), or `place-single`'s plan where that is "
        "faster because it cuts the batch. Only the last row of attention may cut it without need, and so exceed "
        "100 %; 0 % is a refusal.",
        "",
        *_share_rows(small["rows"]),
        "",
        f"The same on {large['scenarios']} graphs of 16 to 60 operators over 4 to 32 devices, most of 4 to 12; 100 % "
        "is the best known: of these plans (but for the last row of attention), and of what some thousand changes of "
        "single operators make of the best three. It is not proven to be the best. No plan can be below the bound, cut "
        "batches included.",
        "",
        *_share_rows(large["rows"]),
        "",
    ]
    labels = ["heft", *(row["policy"] for row in large["rows"] if row["policy"].startswith("attention-operators"))]
    return [*lines, *_family_rows([*small["families"], *large["families"]], labels)]


def _family_rows(families: list[dict[str, Any]], labels: list[str]) -> list[str]:
    """Median and 10th percentile of some policies in each family."""
    lines = [f"| family (median / 10th percentile) | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for family in families:
        found = [family["policies"][label] for label in labels]
        shares = " | ".join(f"{100 * each['median']:.0f} / {100 * each['p10']:.0f} %" for each in found)
        seen = "" if family["trained"] else ", a family never trained on"
        lines.append(f"| {family['family']}: {family['summary']}{seen} | {shares} |")
    return lines


def _share_rows(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| policy | median | 10th percentile | worst | at the optimum | gap to the bound | decision, ms of processor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("median", "p10", "worst", "at_optimum"))
        gap = "-" if row.get("gap_median") is None else f"{100 * row['gap_median']:.0f} %"
        lines.append(f"| {row['policy']} | {shares} | {gap} | {row['decision_ms']:.2g} |")
    return lines


def adaptive_lines() -> list[str]:
    """Shares of a clairvoyant's throughput in runs that nobody tuned on, all together and by family."""
    place = SCOREBOARD / "adaptive.json"
    if not place.exists():
        return ["`make adaptive` has not been run on this version."]
    score = json.loads(place.read_text())
    lines = [
        "| policy | median | 10th percentile | worst | within 10 %, aim: all | by the rules | after changes | changes "
        "| against static and price, aim: <= 0 % (worst run) | gain | not worth their price | gap to the bound |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in score["rows"]:
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("median", "p10", "worst"))
        within = f"{100 * row['within_tenth']:.1f} %, {_mark(row['within_tenth'] >= 1)}"
        lost = f"{row['not_worth']:.0f} of {score['scenarios']}, at most {100 * max(row['worst_loss'], 0.0):.1f} %"
        others = " | ".join(f"{100 * row[f'{key}_within_tenth']:.1f} %" for key in ("bound", "after"))
        static = f"{100 * row['over_static']:+.1f} %, {_mark(row['over_static'] <= 0)} "
        static += f"({100 * row['over_static_worst']:+.1f} %)"
        rest = (
            f"{row['changes']:.1f} | {static} | {row['against_still']:.2f} | {lost} | {100 * row['gap_median']:.0f} %"
        )
        lines.append(f"| {row['policy']} | {shares} | {within} | {others} | {rest} |")
    return [
        *lines,
        *_adaptive_families(score, "family (median / worst)", ""),
        *_adaptive_families(score, "against the one who keeps to the rules", "bound_"),
        "",
        f"{score['scenarios']} held-out runs, simulated on {score['date']} by `{score['made_by']}`. 100 % is a "
        "clairvoyant who takes the best plan of every single step and changes for nothing. By the rules: runs within "
        "10 % of a second one, who knows the run too but changes only where and as often as policies may, and pays for "
        "it and for losses. After changes: runs that are within 10 % of the first one once the last change is made. "
        "Against static and price: how much longer all runs take than by the exact split that follows nothing but "
        "losses, plus the price of the changes. "
        "Gain: over the same policy without changes of its own will (`cannikin-online` then keeps the equal shares "
        "that it begins with), which no run should be slower than but for the price of its changes. "
        "Gap to the bound: the median of how much longer runs take than steps that no plan of any kind can beat. "
        "`stealing` is never asked: whoever is free takes the next micro-batch.",
    ]


def _mark(met: bool) -> str:
    return "met" if met else "**missed**"


def _adaptive_families(score: dict[str, Any], title: str, prefix: str) -> list[str]:
    """Median and worst share by family; ``prefix`` says which clairvoyant's."""
    labels = [row["policy"] for row in score["rows"]]
    lines = ["", f"| {title} | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for family in score["families"]:
        found = [family["policies"][label] for label in labels]
        pairs = [(each[f"{prefix}median"], each[f"{prefix}worst"]) for each in found]
        shares = " | ".join(f"{100 * median:.0f} / {100 * worst:.0f} %" for median, worst in pairs)
        lines.append(f"| {family['family']}: {family['summary']} | {shares} |")
    return lines


def exhaust_lines() -> list[str]:
    """How many answers of the library were judged, by `make exhaust`, which nobody runs in CI."""
    place = SCOREBOARD / "exhaust.json"
    if not place.exists():
        return ["`make exhaust` has not been run on this version."]
    found = json.loads(place.read_text())
    asked = sum(found[f"{kind}_total"] for kind in ("plans", "infeasible", "invalid"))
    return [
        f"{found['scenarios']:,} generated scenarios, {asked:,} answers of {len(found['policies'])} policies on "
        f'{found["date"]} (`make exhaust ARGS="--each {found["policies_per_scenario"]} --seed {found["seed"]}"`): '
        f"{found['plans_total']:,} plans, "
        f"{found['infeasible_total']:,} refusals with a reason, {found['invalid_total']:,} invalid."
    ]


def validated_lines(demo: dict[str, Any]) -> list[str]:
    """Where and when the demo's figures were measured."""
    host = demo["host"]
    return [
        f"- `profiled` predictions on CPU lanes: mean absolute error {demo['mape_percent']:.1f} %, worst "
        f"{demo['worst_error_percent']:.1f} %, on {demo['date']}, {host['cores']} cores of {host['cpu']}, "
        f"{host['system']}, Python {host['python']}, torch {host['torch']}, transformers {host['transformers']}"
        + (", on a busy or noisy host." if demo["busy"] else ".")
    ]


def chaos_lines() -> list[str]:
    """What training under faults came to, by `make chaos`, which is too long for CI."""
    place = SCOREBOARD / "chaos.json"
    if not place.exists():
        return ["`make chaos` has not been run on this version."]
    found = json.loads(place.read_text())
    struck = found["struck"]
    others = [("driver", "killed drivers"), ("disk", "full disks")]  # not in results of before there were such
    parts = [
        f"{struck['kill']} kills",
        f"{struck['hang']} hangs",
        *(f"{struck[s]} {n}" for s, n in others if s in struck),
    ]
    bytes_ = "the same bytes as undisturbed" if found["bit_identical"] else "**other bytes than undisturbed**"
    return [
        f"Training under {', '.join(parts[:-1])} and {parts[-1]} at random moments on {found['date']} "
        f"(`make chaos`, {found['minutes']:.0f} minutes): {bytes_}; {found['lost_results']} results lost, "
        f"{found['misnamed']} culprits misnamed, {found['late']} noticed later than stated, "
        f"{len(found['left_behind'])} processes, groups, namespaces or folders left behind, "
        f"{len(found['exposed_listeners'])} listeners to be reached from outside. "
        + (f"In detail: {'; '.join(found['problems'])}. " if found["problems"] else "")
        + "What is noticed when, and what is kept: [faults](docs/faults.md)."
    ]


def suite_lines() -> list[str]:
    """What a wider suite of replays came to: each aim, each case, how much of it was measured, what was noted."""
    from steelyard.results.criteria import Criterion
    from steelyard.results.suite_report import measured_line, shared_lines

    place = SCOREBOARD / "suite.json"
    if not place.exists():
        return ["`make suite` has not been run on this version."]
    found = json.loads(place.read_text())
    lines = ["| over all cases | figure | aim | |", "|---|---|---|---|"]
    for each in found["criteria"]:
        value = "-" if each["value"] is None else f"{each['value']:.2f}"
        met = Criterion.model_validate(each).verdict().replace("MISSED", "**missed**").replace("OUTSIDE", "**outside**")
        lines.append(f"| {each['what']} | {value} | {each['limit']} | {met} |")
    columns = (
        "case | lanes | plans | signed error | absolute | worst | τ | regret | coverage (width) | noise floor | host"
    )
    lines += ["", f"| {columns} |", "|---" * 11 + "|", *(_case_line(case) for case in found["cases"] if case["lanes"])]
    host = found["host"]
    skipped, failed = ("; ".join(f"{what}: {why}" for what, why in found[key].items()) for key in ("skipped", "failed"))
    return [
        *lines,
        "",
        f"{sentence(measured_line(found))} {' '.join(map(sentence, shared_lines(found)))}",
        "",
        f"On {found['date']}, {host['cores']} cores of {host['cpu']}, by `make suite`; "
        f"{found.get('coverage_count', 0)} launch medians are pooled in the coverage. "
        + (f"Skipped: {skipped}. " if skipped else "")
        + (f"**Failed: {failed}.** " if failed else "")
        + " ".join(sentence(note) for note in found["notes"]),
    ]


def sentence(text: str) -> str:
    """A line of the tool's output as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def _case_line(case: dict[str, Any]) -> str:
    found = case["comparison"]
    tau = "-" if found["kendall_tau"] is None else f"{found['kendall_tau']:.2f}"
    regret = "-" if found["regret_percent"] is None else f"{found['regret_percent']:.1f} %"
    cells = [
        case["name"]
        + (", shared cores" if case["shares_cores"] else "")
        + (", shaped links" if case["shaped"] else ""),
        str(case["lanes"]),
        str(sum(row["twin_of"] is None for row in found["plans"])),
        f"{found['mean_error_percent']:+.1f} %",
        f"{found['mape_percent']:.1f} %",
        f"{found['worst_signed_error_percent']:+.1f} %",
        tau,
        regret,
        f"{found['coverage_percent']:.0f} % ({found['interval_width_percent']:.1f} %)",
        "-" if found["noise_floor_percent"] is None else f"{found['noise_floor_percent']:.1f} %",
        "busy" if found["busy"] else "quiet",
    ]
    return f"| {' | '.join(cells)} |"


def bench_lines(bench: dict[str, Any]) -> list[str]:
    """One row per benchmark, and when and where they ran; figures of older versions do not say it."""
    figures = bench.get("figures", bench)
    rows = [
        f"| {name} | {entry['value']:.2f} | {entry['aim']} | {entry['what']} |"
        for name, entry in sorted(figures.items())
    ]
    made = "By `make bench`, which prints what `make publish ARGS=bench` keeps"
    if "date" in bench:
        host = bench["host"]
        made += f"; on {bench['date']}, {host['cores']} cores of {host['cpu']}, Python {host['python']}"
    return ["| benchmark | figure | aim | what it is, in one run |", "|---|---|---|---|", *rows, "", f"{made}."]


def _ms(middle: float, interval: list[float]) -> str:
    return f"{1e3 * middle:.1f} ({1e3 * interval[0]:.1f}-{1e3 * interval[1]:.1f})"
