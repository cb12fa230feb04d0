"""The rounds of a cell as one row, and the rows as a table of Markdown."""

from collections.abc import Mapping, Sequence
from statistics import median

from bench.candidates import BEST_OF_STOCK
from bench.measurement import Cell, Measured

COLUMNS = (
    "config", "+ms", "task", "msg/s median (min-max)", "ratio to stock best",
    "Receive/msg", "Delete/msg", "calls/msg", "CPU of worker tree",
)  # fmt: skip

Rounds = Mapping[Cell, Sequence[Measured]]


def markdown(rounds: Rounds) -> str:
    """The table, the cells of one task and delay together."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    ordered = sorted(rounds, key=lambda cell: (cell.delay_ms, cell.task))
    return "\n".join([*lines, *(_line(_row(cell, rounds)) for cell in ordered)])


def rate(measured: Sequence[Measured]) -> float:
    """Messages a second: the median of the rounds."""
    return median(m.rate for m in measured)


def ratio(cell: Cell, rounds: Rounds) -> float | None:
    """How many times stock's rate at its best settings, with the same task and delay."""
    for other, measured in rounds.items():
        same = (other.task, other.delay_ms) == (cell.task, cell.delay_ms)
        if same and other.candidate.name == BEST_OF_STOCK:
            return rate(rounds[cell]) / rate(measured)
    return None


def _row(cell: Cell, rounds: Rounds) -> list[str]:
    measured = rounds[cell]
    rates = sorted(m.rate for m in measured)
    times = ratio(cell, rounds)
    cores = [m.worker_cpu / m.seconds for m in measured if m.worker_cpu is not None]
    return [
        cell.candidate.name,
        f"{cell.delay_ms:g}",
        cell.task,
        f"**{rate(measured):.0f}** ({rates[0]:.0f}-{rates[-1]:.0f})",
        f"{times:.1f}" if times is not None else "-",
        *(
            f"{median(m.calls_a_message(word) for m in measured):.3f}"
            for word in ("Receive", "Delete", "")
        ),
        f"{median(cores):.2f} cores" if cores else "-",
    ]


def _line(fields: Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"
