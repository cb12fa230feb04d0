"""python -m bench: this project beside others, in one run on this machine."""

import argparse
import signal
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from bench import charts, documents, lab, machine, node, profile, results, steadiness
from bench.errors import BenchError
from bench.fleet import documents as of_fleets
from bench.plan import FULL, QUICK, Plan
from bench.results import Results
from bench.run import Run
from bench.traffic import ROOT
from devstack.errors import StackError
from sqs_broker.machine import files


def main() -> int:
    options = _options()
    # The blocks below stop what they started; by itself SIGTERM would end none of them.
    signal.signal(signal.SIGTERM, _stop)
    try:
        if options.write_docs:
            return _write_documents(options.write_docs)
        if options.profile:
            with tempfile.TemporaryDirectory(prefix="bench-") as directory:
                return _profile(Path(directory))
        return _measure(options)
    except (BenchError, StackError, TimeoutError) as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _write_documents(measured: Path) -> int:
    beside = measured.with_name("soak.json")
    soak = steadiness.load(beside) if beside.exists() else None
    found = results.load(measured)
    written = documents.write(found, soak)
    if found.loads:
        written += of_fleets.write(found)
    for path in written:
        _say(f"wrote {path.relative_to(ROOT)}")
    return 0


def _profile(directory: Path) -> int:
    with lab.running(directory) as at:
        _say(str(profile.measure(at)))
    return 0


def _measure(options: argparse.Namespace) -> int:
    plan, started = _plan(options), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        lab.running(Path(directory)) as at,
    ):
        found = Results(
            at=datetime.now(UTC).strftime("%Y-%m-%d"),
            machine=machine.machine(),
            versions=machine.versions() | ({} if at.why_no_node else node.versions()),
            server=at.server.name,
            rounds=plan.rounds,
            window=plan.window,
            command='make bench ARGS="--quick"' if options.quick else "make bench",
        )
        Run(at, plan, found, _say, options.only, started).measure()
    _keep(found, options.out, "quick" if options.quick else "bench")
    return 1 if found.failed else 0


def _keep(found: Results, directory: Path, name: str) -> None:
    results.save(found, directory / f"{name}.json")
    page = documents.markdown(found)
    files.replace(directory / f"{name}.md", page, files.PUBLIC)
    _say(f"\n{page}")
    try:
        drawn = charts.draw(found, directory)
    except ModuleNotFoundError as exc:
        _say(f"No charts: {exc}. They need the dependency group bench.")
        drawn = []
    for path in [directory / f"{name}.json", directory / f"{name}.md", *drawn]:
        _say(f"wrote {path}")


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else FULL
    changes = {
        "rounds": options.rounds,
        "window": options.window,
        "backlog": options.backlog,
        "limit": options.minutes and options.minutes * 60,
    }
    return replace(plan, **{name: value for name, value in changes.items() if value is not None})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of less, under three minutes")
    add("--minutes", type=float, help="nothing is begun that would not end before (28)")
    add("--rounds", type=int, help="rounds of every row (3)")
    add("--backlog", type=int, help="messages before a worker starts (12000)")
    add("--window", type=float, help="seconds counted (3)")
    add("--only", default="", metavar="TEXT", help="measure what has this in its name")
    add("--out", type=Path, default=ROOT / ".local" / "bench", help="where results are written")
    add("--profile", action="store_true", help="where this project's main process spends its time")
    add(
        "--write-docs",
        type=Path,
        metavar="FILE",
        help="write the documents from this JSON, and soak.json beside it",
    )
    return parser.parse_args()


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
