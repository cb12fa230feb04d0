"""Writes results into the documents, each between two markers of its name."""

from collections.abc import Sequence
from pathlib import Path

from bench import charts, steadiness, table
from bench.errors import BenchError
from bench.results import Results
from bench.steadiness import Soak
from bench.traffic import ROOT
from sqs_broker.machine import files

BENCH = ROOT / "docs" / "bench.md"
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
ABOUT = {
    "throughput": "Messages a second, one upsert each",
    "cost": "SQS calls a message, and CPU seconds a thousand messages",
    "latency": "From sent to stored: at 50 messages/s, and at 10% and 80% of what each carries",
    "soak": "The worker over time",
}

#: Rows of one round that are told in one sentence.
MANY = 4


def write(results: Results, soak: Soak | None) -> list[Path]:
    """The tables of docs/bench.md, the README's sentence, and the charts; what was written.

    Without a soak, what is told of one stays as it is.

    Raises BenchError where a document has lost its markers.
    """
    written = charts.draw(results, IMAGES)
    sections = {
        BENCH: {
            "machine": origin(results),
            "figures": table.figures(results),
            "throughput": table.throughput(results) + _shown(written, "throughput", "cost"),
            "latency": table.latency(results) + _shown(written, "latency"),
            "quiet": table.quiet(results),
            "recovery": table.recovery(results),
            "publishing": table.publishing(results),
            "events": table.events(results),
            "depths": table.depths(results),
            "queues": table.queues(results),
            "fleets": table.fleets(results),
            "loads": table.loads(results),
            "api": table.api(results),
        },
        README: {"headline": _headline(results)},
    }
    if soak is not None:
        written += charts.draw_soak(soak, IMAGES)
        sections[BENCH]["soak"] = _soak(soak)
    for path, contents in sections.items():
        text = path.read_text()
        for name, content in contents.items():
            text = replaced(text, name, content)
        files.replace(path, text, files.PUBLIC)
        written.append(path)
    return written


def _shown(charts: Sequence[Path], *names: str) -> str:
    """These charts, as far as they were drawn."""
    drawn = [path for path in charts if path.stem in names]
    return "".join(f"\n\n![{ABOUT[path.stem]}](images/{path.name})" for path in drawn)


def _headline(results: Results) -> str:
    return f"{table.headline(results)} {short_origin(results)}"


def _soak(soak: Soak) -> str:
    told = f"{soak.at}, {soak.minutes:g} minutes at {soak.rate:g} messages/s, {soak.machine}."
    found = steadiness.faults(soak)
    verdict = f"Not steady: {'; '.join(found)}." if found else "Nothing grew, nothing drifted."
    chart = f"![{ABOUT['soak']}](images/soak.png)"
    return f"{told} {verdict}\n\n{steadiness.table(soak)}\n\n{chart}"


def replaced(text: str, name: str, content: str) -> str:
    """The text with this content, and nothing else, between the markers of the name."""
    start, end = f"<!-- bench: {name} -->\n", f"<!-- end: {name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise BenchError(f"the document has no markers {start.strip()} and {end}")
    return f"{before}{start}{content}\n{end}{after}"


def markdown(results: Results) -> str:
    """All tables, as one page."""
    parts = {
        "The figures": table.figures(results),
        "Throughput": table.throughput(results),
        "Latency": table.latency(results),
        "Idle, and full with long tasks": table.quiet(results),
        "After kill -9": table.recovery(results),
        "Sending": table.publishing(results),
        "Events": table.events(results),
        "Depth of the queue": table.depths(results),
        "Number of queues": table.queues(results),
        "Several workers": table.fleets(results),
        "Loads": table.loads(results),
        "The HTTP API": table.api(results),
    }
    told = "".join(f"\n## {name}\n\n{part}\n" for name, part in parts.items())
    return f"# Benchmark\n\n{origin(results)}\n{told}"


def origin(results: Results) -> str:
    """What the figures come from, and what is not among them."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    lines = [
        f"{results.at}, `{results.command}`, {results.seconds / 60:.0f} minutes: "
        f"{results.machine}; {versions}; {results.server}. Medians of {_rounds(results)} round(s), "
        f"windows of {results.window:g} s.",
        _proxy(results),
        *(f"Not measured: {why}." for why in _gathered(results.skipped)),
        *(f"Failed: {why}." for why in results.failed),
    ]
    return "\n\n".join(line for line in lines if line)


def _rounds(results: Results) -> str:
    """How many were measured: where time runs out, not of every row so many as wanted."""
    counts = {len(row.rounds) for row in results.throughput} or {results.rounds}
    return "-".join(str(count) for count in sorted({min(counts), max(counts)}))


def _gathered(skipped: list[str]) -> list[str]:
    """What was left out, and why; many rows of one round in one sentence."""
    groups: dict[tuple[str, str], list[str]] = {}
    for told in skipped:
        step, _, why = told.split(", ", 1)[0], *told.rpartition(": ")[1:]
        groups.setdefault((step, why), []).append(told)
    return [
        line
        for (step, why), rows in groups.items()
        for line in (rows if len(rows) < MANY else [f"{step}, {len(rows)} rows: {why}"])
    ]


def short_origin(results: Results) -> str:
    """What a reader of one figure has to know of it."""
    return (
        f"Measured {results.at} on {results.machine}. SQS server: {results.server}. "
        "All figures: [docs/bench.md](docs/bench.md)."
    )


def _proxy(results: Results) -> str:
    """Whether the proxy was the bottleneck of any row."""
    every = [each for row in results.throughput for each in row.rounds]
    if results.limits is None or not every:
        return ""
    busiest = max(every, key=lambda each: sum(each.calls.values()) / each.seconds)
    most = sum(busiest.calls.values()) / busiest.seconds
    shares = [each.proxy_cpu / each.seconds for each in every if each.proxy_cpu is not None]
    used = f", with {max(shares):.2f} of a core at most" if shares else ""
    return (
        f"The proxy adds {results.limits.added_ms:.2f} ms to a call and could carry "
        f"{results.limits.calls_a_second:.0f} calls/s; the most it had to carry was "
        f"{most:.0f}{used}. One upsert takes {results.limits.upsert_ms:.1f} ms if nobody else "
        "writes."
    )
