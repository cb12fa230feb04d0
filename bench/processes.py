"""What a process and all it started use, from Linux's /proc. None where there is no /proc."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Usage:
    """Of every descendant of a process, together."""

    cpu: float
    """Seconds so far, those of the ended included where a parent that lives has collected them."""
    memory: int
    """Bytes: the proportional set size, where a shared page counts once."""
    descriptors: int
    threads: int


def usage_below(pid: int) -> Usage | None:
    """What the descendants of `pid` use now."""
    used = cpu_below(pid)
    if used is None:
        return None
    found = below(pid)
    return Usage(used, *(sum(map(count, found)) for count in (_memory, _descriptors, _threads)))


def cpu_below(pid: int) -> float | None:
    """CPU seconds of the descendants of `pid` so far."""
    facts = _facts()
    if facts is None:
        return None
    # utime, stime, cutime, cstime: proc(5), counted from the field after the name
    ticks = sum(int(n) for child in _below(pid, facts) for n in facts[child][11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_of_machine() -> float | None:
    """CPU seconds of everything on this machine so far."""
    try:
        fields = (PROC / "stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    # user, nice, system, then idle and iowait, then irq, softirq: proc(5)
    busy = (*fields[1:4], *fields[6:8])
    return sum(map(int, busy)) / os.sysconf("SC_CLK_TCK")


def below(pid: int) -> list[int]:
    """The descendants of `pid` that live, parents before their children."""
    return _below(pid, _facts() or {})


def _below(pid: int, facts: dict[int, list[str]]) -> list[int]:
    children: dict[int, list[int]] = {}
    for child, fields in facts.items():
        children.setdefault(int(fields[1]), []).append(child)
    found = list(children.get(pid, ()))
    for child in found:  # it grows while it is read
        found += children.get(child, ())
    return found


def _facts() -> dict[int, list[str]] | None:
    """The fields of `stat`, from the state on, of every process."""
    if not (PROC / "self" / "stat").exists():
        return None
    found = {}
    for entry in PROC.iterdir():
        # Processes end while they are looked at.
        with suppress(OSError):
            if entry.name.isdecimal():
                # The name is in parentheses and may hold anything, parentheses included.
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    return found


def _or_zero(count: Callable[[int], int]) -> Callable[[int], int]:
    def counted(pid: int) -> int:
        with suppress(OSError):
            return count(pid)
        return 0

    return counted


@_or_zero
def _memory(pid: int) -> int:
    told = (PROC / str(pid) / "smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB", told, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@_or_zero
def _descriptors(pid: int) -> int:
    return sum(1 for _ in (PROC / str(pid) / "fd").iterdir())


@_or_zero
def _threads(pid: int) -> int:
    return sum(1 for _ in (PROC / str(pid) / "task").iterdir())
