"""The chart of a simulated day. matplotlib comes with the dependency group `bench`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import pyplot

from infra.scaling import Minute
from sqs_broker.machine import files

#: The color and the width of each line.
STYLES = (
    ("#1565c0", 1.8), ("#ef6c00", 1.4), ("#9e9e9e", 1.4), ("#c62828", 0.6), ("#2e7d32", 1.4),
)  # fmt: skip
DPI = 110


def draw(days: Mapping[str, Sequence[Minute]], traffic: Sequence[int], directory: Path) -> Path:
    """Draw the days beneath each other's: traffic, tasks and delay. Returns the file."""
    figure, axes = pyplot.subplots(3, 1, figsize=(10, 8), sharex=True, layout="constrained")
    hours = [minute / 60 for minute in range(len(traffic))]
    axes[0].plot(hours, traffic, color="#455a64")
    axes[0].set_ylabel("new messages a minute")
    for (name, minutes), (color, width) in zip(days.items(), STYLES, strict=True):
        axes[1].step(hours, [each.tasks for each in minutes], color=color, lw=width, label=name)
        axes[2].plot(hours, [each.delay for each in minutes], color=color, lw=width, label=name)
    axes[1].set_ylabel("running tasks or invocations")
    axes[2].set_ylabel("age of the oldest message, minutes")
    axes[2].set_xlabel("hour of the day")
    axes[2].set_xticks(range(0, 25, 2))
    axes[1].legend(loc="upper left")
    for each in axes:
        each.grid(alpha=0.3)
        each.set_ylim(bottom=0)
    axes[2].set_xlim(0, 24)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    path = directory / "scaling.png"
    files.replace(path, drawn.getvalue(), files.PUBLIC)
    return path
