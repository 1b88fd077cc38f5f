"""Condition: what of the host may change while it is measured, looked at before the first launch and after the last."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from .devices import fingerprint

STOLEN_PERCENT = 2.0
"""More of the processors' time than this, given to other machines by the hypervisor, and the host counts as busy."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FREQUENCY = Path("/sys/devices/system/cpu")
FACTS = ("boot", "governors", "turbo_off", "host")
"""Parts of a condition that must be equal before and after."""


def condition() -> dict[str, Any]:
    """The host as it is now: what it is made of, how its clocks are governed, and what it has done since it started.

    A figure that a system does not tell is None.
    """
    times = psutil.cpu_times()
    return {
        "host": fingerprint(),
        "boot": _line(BOOT_ID),
        "governors": sorted({_line(each) or "" for each in FREQUENCY.glob("cpu*/cpufreq/scaling_governor")}),
        "turbo_off": _line(FREQUENCY / "intel_pstate" / "no_turbo"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "free_memory_gib": psutil.virtual_memory().available / 2**30,
        "busy_s": sum(times) - times.idle - getattr(times, "iowait", 0.0),
        "stolen_s": getattr(times, "steal", None),
        "clock_s": time.monotonic(),
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is different after a measurement, in sentences: each one makes the host no longer the one that began it."""
    found = []
    for part in FACTS:
        if before[part] == after[part]:
            continue
        if isinstance(before[part], Mapping):
            keys = [key for key in before[part] if before[part][key] != after[part].get(key)]
            found += [f"{key} was {before[part][key]!r} before and is {after[part].get(key)!r} after" for key in keys]
        else:
            found.append(f"{part.replace('_', ' ')} was {before[part]!r} before and is {after[part]!r} after")
    stolen = stolen_percent(before, after)
    if stolen is not None and stolen > STOLEN_PERCENT:
        found.append(f"{stolen:.1f} % of the processors' time went to other machines of the same hypervisor")
    return found


def stolen_percent(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Share of the time that the host's processors were wanted in which the hypervisor ran others, in percent."""
    if before["stolen_s"] is None or after["stolen_s"] is None:
        return None
    wanted = after["busy_s"] - before["busy_s"]  # psutil counts steal among what is neither idle nor iowait
    return 100 * max(0.0, after["stolen_s"] - before["stolen_s"]) / wanted if wanted > 0 else 0.0


def _line(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
