"""The charts, as PNG. matplotlib comes with the dependency group `bench`."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.candidates import OURS_BY_DOOR
from bench.results import Results, Round, Throughput
from bench.steadiness import MEGABYTE, Soak
from sqs_broker.machine import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHERS, LIMIT = "#1565c0", "#9e9e9e", "#d0d0d0"
#: One worker again, and as fast as it is: they stand in the table alone.
BY_DOOR = frozenset(each.name for each in OURS_BY_DOOR)
DPI = 110
COUNTED = ("descriptors", "threads", "sent", "settled", "stored")


def draw(results: Results, directory: Path) -> list[Path]:
    """Every chart for which there are figures; the files."""
    charts: dict[str, Callable[[Results], Any]] = {
        "throughput": _throughput,
        "cost": _cost,
        "latency": _latency,
    }
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, chart in charts.items():
        figure = chart(results)
        if figure is not None:
            path = directory / f"{name}.png"
            _save(figure, path)
            written.append(path)
    return written


def draw_soak(soak: Soak, directory: Path) -> list[Path]:
    """What a worker used and what became of its messages, over time; the file."""
    made, axes = figure(3, 3)
    at = [each.at / 60 for each in soak.samples]
    _lines(axes[0][0], at, {"memory, MB": [each.memory / MEGABYTE for each in soak.samples]})
    counts = {name: [getattr(each, name) for each in soak.samples] for name in COUNTED}
    _lines(axes[0][1], at, {name: counts[name] for name in ("descriptors", "threads")})
    _lines(axes[0][2], at, {name: counts[name] for name in ("sent", "settled", "stored")})
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "soak.png"
    _save(made, path)
    return [path]


def _save(figure: Any, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    files.replace(path, drawn.getvalue(), files.PUBLIC)


def _lines(axis: "Axes", at: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    # Lines that lie on each other are told apart by their strokes.
    axis.margins(y=0.1)
    for (name, values), style in zip(lines.items(), ("-", "--", ":"), strict=False):
        axis.plot(at, values, style, label=name)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("minutes", fontsize=8)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def figure(columns: int, height: float) -> tuple[Any, Any]:
    """An empty figure, made without a display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(1, columns, squeeze=False)


def colour(config: str) -> str:
    """Ours, the limits, and everybody else."""
    if config.startswith("this project"):
        return OURS
    return LIMIT if config.startswith("bare") else OTHERS


def _throughput(results: Results) -> Any:
    rows = {added: single(results, added) for added in (10.0, 0.0)}
    if not all(rows.values()):
        return None
    made, axes = figure(2, 0.4 * max(map(len, rows.values())) + 1)
    for axis, (added, found) in zip(axes[0], rows.items(), strict=True):
        ranges = [row.spread for row in found]
        errors = [
            [row.rate - low for row, (low, _) in zip(found, ranges, strict=True)],
            [high - row.rate for row, (_, high) in zip(found, ranges, strict=True)],
        ]
        _bars(axis, [row.config for row in found], [row.rate for row in found], errors)
        axis.set_title(f"messages/s, one upsert each, +{added:g} ms a call", fontsize=10)
    return made


def _cost(results: Results) -> Any:
    found = single(results, 10)
    if not found:
        return None
    made, axes = figure(2, 0.4 * len(found) + 1)
    names = [row.config for row in found]
    calls = [row.median(Round.calls_a_message) or 0.0 for row in found]
    cpu = [row.median(lambda each: each.cpu_a_thousand) or 0.0 for row in found]
    _bars(axes[0][0], names, calls, how="{:.2f}")
    axes[0][0].set_title("SQS calls a message, +10 ms a call", fontsize=10)
    _bars(axes[0][1], names, cpu, how="{:.2f}")
    axes[0][1].set_title("CPU seconds a thousand messages", fontsize=10)
    return made


def _latency(results: Results) -> Any:
    found = [each for each in results.latency if each.p50 is not None and each.p99 is not None]
    if not found:
        return None
    made, axes = figure(2, 0.4 * len(found) + 1)
    names = [f"{each.config}, {each.rate:.0f}/s, {each.load:.0%} load" for each in found]
    for axis, share in zip(axes[0], ("p50", "p99"), strict=True):
        _bars(axis, names, [getattr(each, share) for each in found])
        axis.set_title(f"sent to stored, {share}, ms (logarithmic)", fontsize=10)
        axis.set_xscale("log")
    return made


def single(results: Results, added_ms: float) -> list[Throughput]:
    """The rows of one upsert and one worker, the fastest last: a bar chart is read upwards."""
    rows = [
        row
        for row in results.throughput
        if (row.task, row.added_ms, row.workers) == ("register", added_ms, 1)
        and row.config not in BY_DOOR
    ]
    return sorted(rows, key=lambda row: row.rate)


def _bars(
    axis: "Axes",
    names: Sequence[str],
    values: Sequence[float],
    errors: Any = None,
    how: str = "{:.0f}",
) -> None:
    bars = axis.barh(
        names, values, xerr=errors, color=[colour(name) for name in names], ecolor="#555555"
    )
    axis.bar_label(bars, labels=[how.format(value) for value in values], padding=6, fontsize=8)
    axis.margins(x=0.15)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
