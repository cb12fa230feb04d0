"""What is said of a run beside its table, and the whole of it as JSON."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from bench import table
from bench.limits import Limits
from bench.measurement import Effort
from bench.table import Rounds

PACKAGES = ("celery", "kombu", "boto3", "pycurl", "pymongo", "roto-aws")


def heading(effort: Effort, rounds: int, limits: Limits) -> str:
    """The machine, the versions, what was asked, and what the proxy can carry."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    core = limits.calls_a_cpu_second
    return (
        f"{_machine()}; Python {platform.python_version()}, {versions}.\n"
        f"{rounds} round(s), alternating; windows of {effort.window:g} s on backlogs of "
        f"{effort.backlog} messages; roto in memory, whose receive costs more the longer the "
        "backlog.\n"
        f"The proxy carried {limits.calls_a_second:.0f} calls/s of 8 clients"
        + (f" ({core:.0f} for each second of a core)" if core else "")
        + f" and adds {limits.added_ms:.2f} ms to a call."
    )


def proxy_share(rounds: Rounds) -> str:
    """Whether the proxy was the bottleneck of any cell."""
    every = [m for measured in rounds.values() for m in measured]
    most = max((sum(m.calls.values()) / m.seconds for m in every), default=0)
    shares = [m.proxy_cpu / m.seconds for m in every if m.proxy_cpu is not None]
    cpu = f", where it used {max(shares):.2f} of a core at most" if shares else ""
    return f"The most it had to carry was {most:.0f} calls/s{cpu}."


def as_json(effort: Effort, limits: Limits, rounds: Rounds) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "machine": _machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "effort": asdict(effort),
        "proxy": asdict(limits),
        "cells": [
            {
                "config": cell.candidate.name,
                "added_ms": cell.delay_ms,
                "task": cell.task,
                "messages_a_second": table.rate(measured),
                "ratio_to_stock_best": table.ratio(cell, rounds),
                "rounds": [
                    asdict(m) | {"rate": m.rate, "calls_a_message": m.calls_a_message()}
                    for m in measured
                ],
            }
            for cell, measured in rounds.items()
        ],
    }


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
