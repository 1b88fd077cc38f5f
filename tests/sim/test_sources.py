"""Where the catalog's figures are from: an entry without a source is refused, and the recalled ones are counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steelyard.results.errors import InputError
from steelyard.sim.device import Device, Link
from steelyard.sim.sources import check_sources, figures, recalled_figures
from steelyard.sim.spec import load_device, load_link, parse_toml, shipped_names, shipped_text

DEVICES, LINKS = shipped_names("catalog/devices"), shipped_names("catalog/links")
ENTRIES = [*(load_device(name) for name in DEVICES), *(load_link(name) for name in LINKS)]


def with_source(entry: Device | Link, source: dict[str, str]) -> Device | Link:
    return entry.model_copy(update={"source": source})


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_shipped_entries_pass(entry: Device | Link) -> None:
    check_sources(entry)
    assert set(figures(entry)) == set(entry.source)


@given(entry=st.sampled_from(ENTRIES), data=st.data(), text=st.sampled_from(["", " ", "\t\n"]) | st.none())
def test_any_figure_without_a_source_is_named(entry: Device | Link, data: st.DataObject, text: str | None) -> None:
    lost = data.draw(st.sampled_from(figures(entry)))
    left = {name: each for name, each in entry.source.items() if name != lost}
    with pytest.raises(InputError) as caught:
        check_sources(with_source(entry, left if text is None else left | {lost: text}))
    assert caught.value.path.endswith(f"{entry.name}: source")
    assert caught.value.problem == f"{lost} has none"
    assert "\n" not in str(caught.value)


@given(entry=st.sampled_from(ENTRIES), name=st.text())
def test_a_source_of_nothing_is_refused(entry: Device | Link, name: str) -> None:
    stray = with_source(entry, entry.source | {name: "an address"})
    if name in figures(entry):
        return check_sources(stray)
    with pytest.raises(InputError, match="is no figure of the entry"):
        check_sources(stray)
    return None


def test_a_misspelt_figure_is_one_line() -> None:
    link = Link(name="wire", latency_us=1, bandwidth_gb_per_s=1, source={"latency_us": "a", "bandwidth": "b"})
    with pytest.raises(InputError) as caught:
        check_sources(link)
    problem, mend = "bandwidth_gb_per_s has none", 'add "bandwidth_gb_per_s" = "an address", or "recalled"'
    assert str(caught.value) == f"catalog link wire: source: {problem} ({mend})"


def test_figures_are_what_the_entry_itself_gives() -> None:
    """Defaults are the class's, not the entry's; a table by dtype is one figure each, a table of steps is one."""
    device = Device.model_validate(
        {
            "name": "one",
            "peak_tflops": {"fp32": 1.0, "fp16": 2.0},
            "memory_gib": 4.0,
            "memory_bandwidth_gb_per_s": 100.0,
            "compute_efficiency": [{"at_least": 0.0, "share": 0.5}],
            "ranges": {"memory_gib": [3.0, 4.0]},
        }
    )
    assert sorted(figures(device)) == [
        "compute_efficiency",
        "memory_bandwidth_gb_per_s",
        "memory_gib",
        "peak_tflops.fp16",
        "peak_tflops.fp32",
    ]


def test_recalled_figures_are_counted() -> None:
    """Counted here from the files themselves, and few: under a quarter is from memory."""
    files = [*(("devices", name) for name in DEVICES), *(("links", name) for name in LINKS)]
    texts = [
        text
        for folder, name in files
        for text in parse_toml(shipped_text(f"catalog/{folder}", name), name)["source"].values()
    ]
    recalled, total = recalled_figures()
    assert total == len(texts)
    assert recalled == len([text for text in texts if text[:8] == "recalled"])
    assert recalled / total < 0.25
