"""Keeps what was measured of fleets, and writes it into docs/bench.md and docs/fleet.md."""

from dataclasses import replace
from pathlib import Path

from bench import results, table
from bench.documents import BENCH, replaced
from bench.fleet import page
from bench.results import Results
from bench.traffic import ROOT
from sqs_broker.machine import files

#: Of the results of a run, what is about fleets.
MEASURED = Path(__file__).with_name("measured.json")
FLEET = ROOT / "docs" / "fleet.md"


def sections(measured: Results) -> dict[Path, dict[str, str]]:
    """What is between the markers of each page, by their names. Raises BenchError if a part was
    not measured."""
    return {
        BENCH: {"fleets": table.fleets(measured), "loads": table.loads(measured)},
        FLEET: page.parts(measured),
    }


def write(measured: Results) -> list[Path]:
    """Keep the results, and write the pages. Returns what was written. Raises BenchError if a part
    was not measured, or a page has lost its markers."""
    kept = only_fleets(measured)
    pages = {path: _with(path.read_text(), contents) for path, contents in sections(kept).items()}
    results.save(kept, MEASURED)
    for path, text in pages.items():
        files.replace(path, text, files.PUBLIC)
    return [MEASURED, *pages]


def only_fleets(measured: Results) -> Results:
    """The same without all that is not about fleets."""
    empty = Results(
        measured.at, measured.machine, measured.versions, measured.server, measured.rounds,
        measured.window, measured.command,
    )  # fmt: skip
    return replace(
        empty,
        fleets=measured.fleets,
        loads=measured.loads,
        storage=measured.storage,
        seconds=measured.seconds,
    )


def _with(text: str, contents: dict[str, str]) -> str:
    for name, content in contents.items():
        text = replaced(text, name, content)
    return text
