"""CPU time of a process and all it started, from Linux's /proc."""

import os
from pathlib import Path

PROC = Path("/proc")


def seconds_below(pid: int) -> float | None:
    """CPU seconds so far of every descendant of `pid`, the ended ones included where a parent that
    lives has collected them. None where there is no /proc."""
    if not (PROC / "self" / "stat").exists():
        return None
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal() and (facts := _stat(entry)):
            child, parent = int(entry.name), int(facts[1])
            children.setdefault(parent, []).append(child)
            # utime, stime, cutime, cstime: proc(5), counted from the field after the name
            used[child] = sum(int(ticks) for ticks in facts[11:15]) / os.sysconf("SC_CLK_TCK")
    total, below = 0.0, [pid]
    while below:
        born = children.get(below.pop(), [])
        total += sum(used[child] for child in born)
        below += born
    return total


def _stat(entry: Path) -> list[str] | None:
    try:
        # The name is in parentheses and may hold anything, parentheses included.
        return (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended in between
        return None
