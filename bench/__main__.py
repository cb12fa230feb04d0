"""python -m bench: this broker and stock kombu side by side, in one run on this machine."""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from bench import limits, report, table
from bench.candidates import CANDIDATES
from bench.errors import BenchError
from bench.measurement import Cell, Effort, Measured, measure
from bench.work import WORKS
from devstack import mongo
from devstack.errors import StackError

DELAYS_MS = (0.0, 10.0)


def main() -> int:
    options = _options()
    # The blocks below stop what they started; by itself SIGTERM would end none of them.
    signal.signal(signal.SIGTERM, _stop)
    rounds_wanted = options.rounds or (1 if options.quick else 3)
    effort = Effort(options.backlog, options.window)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            logs = Path(directory)
            limit = limits.measure(logs)
            _say(report.heading(effort, rounds_wanted, limit))
            rounds = _measured(rounds_wanted, effort, logs, is_quiet=options.markdown)
    except (BenchError, StackError, TimeoutError) as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    _say(f"{report.proxy_share(rounds)}\n\n{table.markdown(rounds)}")
    if options.json:
        told = report.as_json(effort, limit, rounds)
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def _measured(
    wanted: int, effort: Effort, logs: Path, *, is_quiet: bool
) -> dict[Cell, list[Measured]]:
    """Each cell `wanted` times, one round of all of them after the other."""
    cells = [
        Cell(candidate, task, delay)
        for delay in DELAYS_MS
        for task in WORKS
        for candidate in CANDIDATES
    ]
    rounds: dict[Cell, list[Measured]] = {cell: [] for cell in cells}
    with mongo.running(data=logs / "mongod", log=logs / "mongod.log") as server:
        for number in range(1, wanted + 1):
            for cell in cells:
                measured = measure(cell, effort, server, logs)
                rounds[cell].append(measured)
                if not is_quiet:
                    name = f"{cell.candidate.name}, +{cell.delay_ms:g} ms, {cell.task}"
                    _say(f"round {number}: {name}: {measured.rate:.0f} msg/s")
    return rounds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, under three minutes")
    parser.add_argument("--rounds", type=int, help="rounds of every cell (default: 3)")
    parser.add_argument("--backlog", type=int, default=6000, help="messages (default: 6000)")
    parser.add_argument("--window", type=float, default=3.0, help="seconds counted (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--markdown", action="store_true", help="say the result alone, no steps")
    return parser.parse_args()


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
