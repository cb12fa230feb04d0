"""What a run measured: as text, as charts, and as one page of HTML that needs no other file."""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import charts, machine
from bench.figures import percentile
from bench.load.run import Measured
from sqs_broker.machine import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = (0.5, 0.9, 0.95, 0.99, 1.0)
ASKED, DONE, SLOW, BAD = "#9e9e9e", charts.OURS, "#ef6c00", "#c62828"


@dataclass(frozen=True)
class Row:
    """A figure by its name."""

    name: str
    value: str


def rows(measured: Measured) -> list[Row]:
    """The figures of a run."""
    accepted = measured.accepted
    latencies = [each.milliseconds for each in accepted]
    deepest = max((depth.waiting + depth.in_flight for depth in measured.depths), default=0)
    settled = measured.settled_after
    counts = "; ".join(f"{name} {count}" for name, count in sorted(measured.states.items()))
    errors = "; ".join(f"{name} {count}" for name, count in sorted(measured.errors.items()))
    return [
        Row("requests sent by", measured.sender),
        Row("requests sent", f"{len(measured.sent)}; no client was free for {measured.not_sent}"),
        Row("accepted", str(len(accepted))),
        Row("accepted a second, in each part", _by_part(measured)),
        Row("answer, ms", _percentiles(latencies)),
        Row("accepted to stored, ms", _percentiles(to_stored(measured))),
        Row("queue, most messages", str(deepest)),
        Row("errors", errors or "none"),
        Row("state of the accepted", counts or "none"),
        Row("the last user was stored", f"{_stored_after(measured):.1f} s after the last answer"),
        Row("the API has said that all are final", "no" if settled is None else f"{settled:.1f} s"),
    ]  # fmt: skip


def text(measured: Measured) -> str:
    """The figures, the depth of the queue over time, and the verdict."""
    lines = [f"{row.name}: {row.value}" for row in rows(measured)]
    depths = [
        f"{depth.at - measured.began:.0f} s: {depth.waiting + depth.in_flight}"
        for depth in measured.depths[:: max(1, len(measured.depths) // 12)]
    ]
    return "\n".join([*lines, f"queue over time: {', '.join(depths)}", verdict(measured)])


def verdict(measured: Measured) -> str:
    """Whether the promise was kept."""
    faults = measured.faults()
    if faults:
        return f"FAILED: {'; '.join(faults)}."
    return f"Each of {len(measured.accepted)} accepted registrations has a final state."


def to_stored(measured: Measured) -> list[float]:
    """Milliseconds from the answer until the user was stored. A worker may be faster than the
    answer: then it is 0."""
    return [
        max(0.0, (measured.stored[each.user] - each.accepted_at) * 1000)
        for each in measured.accepted
        if each.user in measured.stored
    ]


def write(measured: Measured, directory: Path) -> list[Path]:
    """Write the charts and the page; the files. Raises ModuleNotFoundError without matplotlib."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    images = []
    for name, (title, draw) in _CHARTS.items():
        made, axes = charts.figure(1, 3.2)
        axis = axes[0][0]
        draw(measured, axis)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("seconds", fontsize=8)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False, loc="upper left")
        drawn = io.BytesIO()
        made.savefig(drawn, dpi=charts.DPI, format="png")
        path = directory / f"{name}.png"
        files.replace(path, drawn.getvalue(), files.PUBLIC)
        written.append(path)
        images.append((title, drawn.getvalue()))
    page = directory / "report.html"
    files.replace(page, html(measured, images), files.PUBLIC)
    return [page, *written]


def html(measured: Measured, images: Sequence[tuple[str, bytes]]) -> str:
    """The page. `images`: title and PNG of each."""
    table = "".join(
        f"<tr><th>{escape(row.name)}</th><td>{escape(row.value)}</td></tr>"
        for row in rows(measured)
    )
    pictures = "".join(
        f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for title, png in images
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Load test</title><style>'
        "body{font:15px sans-serif;max-width:1120px;margin:2em auto;padding:0 1em}"
        "th{text-align:left;font-weight:normal;padding-right:2em;vertical-align:top}"
        "img{display:block;width:100%;margin:1em 0}</style>"
        f"<h1>Load test</h1><p><strong>{escape(verdict(measured))}</strong></p>"
        f"<table>{table}</table>{pictures}<p>{escape(machine.machine())}</p></html>\n"
    )


def _stored_after(measured: Measured) -> float:
    return max(0.0, max(measured.stored.values(), default=0.0) - measured.ended)


def _percentiles(values: Sequence[float]) -> str:
    if not values:
        return "none"
    named = [(f"p{share * 100:g}" if share < 1 else "most", share) for share in SHARES]
    return ", ".join(f"{name} {percentile(values, share):.0f}" for name, share in named)


def _by_part(measured: Measured) -> str:
    shape = measured.shape
    lengths = {"ramp": shape.ramp, "steady": shape.steady, "spike": shape.spike + 2}
    lengths["rest"] = shape.rest
    told, start = [], 0.0
    for name, length in lengths.items():
        inside = sum(
            start <= each.began / 1000 - measured.began - _start_of(measured) < start + length
            for each in measured.accepted
        )
        told.append(f"{name} {inside / length:.0f}" if length else "")
        start += length
    return ", ".join(filter(None, told))


def _start_of(measured: Measured) -> float:
    """When the first request began: the sender needs a moment to start."""
    first = min((each.began for each in measured.sent), default=measured.began * 1000)
    return first / 1000 - measured.began


def _by_second(measured: Measured, times: Sequence[tuple[float, float]]) -> dict[int, list[float]]:
    """Values by the second of their time, counted from the first request."""
    found: dict[int, list[float]] = defaultdict(list)
    start = measured.began + _start_of(measured)
    for at, value in times:
        found[int(at - start)].append(value)
    return dict(sorted(found.items()))


def _draw_rate(measured: Measured, axis: "Axes") -> None:
    shape = measured.shape
    axis.plot(
        range(shape.seconds), [shape.rate_at(second + 0.5) for second in range(shape.seconds)],
        "--", color=ASKED, label="requests due a second",
    )  # fmt: skip
    begun = _by_second(measured, [(each.began / 1000, 1.0) for each in measured.accepted])
    axis.plot(list(begun), [len(each) for each in begun.values()], color=DONE, label="accepted")
    stored = _by_second(measured, [(at, 1.0) for at in measured.stored.values()])
    stored = {second: each for second, each in stored.items() if second >= 0}
    axis.plot(list(stored), [len(each) for each in stored.values()], color=SLOW, label="stored")
    if failed := [each for each in measured.sent if each.kind is not None]:
        begun = _by_second(measured, [(each.began / 1000, 1.0) for each in failed])
        axis.plot(list(begun), [len(each) for each in begun.values()], color=BAD, label="errors")


def _draw_latency(measured: Measured, axis: "Axes") -> None:
    times = [(each.began / 1000, each.milliseconds) for each in measured.accepted]
    _draw_shares(_by_second(measured, times), axis)


def _draw_stored(measured: Measured, axis: "Axes") -> None:
    times = [
        (each.accepted_at, max(0.0, (measured.stored[each.user] - each.accepted_at) * 1000))
        for each in measured.accepted
        if each.user in measured.stored
    ]
    _draw_shares(_by_second(measured, times), axis)


def _draw_shares(values: dict[int, list[float]], axis: "Axes") -> None:
    for share, color in ((0.5, DONE), (0.99, SLOW)):
        points = [percentile(each, share) or 0.0 for each in values.values()]
        axis.plot(list(values), points, color=color, label=f"p{share * 100:g}")


def _draw_depth(measured: Measured, axis: "Axes") -> None:
    start = measured.began + _start_of(measured)
    seconds = [depth.at - start for depth in measured.depths]
    axis.plot(seconds, [depth.waiting for depth in measured.depths], color=DONE, label="waiting")
    flying = [depth.in_flight for depth in measured.depths]
    axis.plot(seconds, flying, color=SLOW, label="in flight")


_CHARTS: dict[str, tuple[str, Any]] = {
    "rate": ("Registrations a second", _draw_rate),
    "latency": ("From request to answer, ms, by second", _draw_latency),
    "stored": ("From accepted to stored, ms, by second", _draw_stored),
    "depth": ("Messages in the queue", _draw_depth),
}
