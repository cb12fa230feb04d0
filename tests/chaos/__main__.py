"""python -m tests.chaos: put a fleet through a schedule of faults, and say what is left."""

import argparse
import os
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from sqs_broker.machine import files
from sqs_broker.options import CLIENTS
from tests.chaos.plan import DEPLOYS, FULL, POOLS, SHORT, Scale
from tests.chaos.report import as_json, as_markdown
from tests.chaos.run import run
from tests.chaos.sides import Ours, Side, Stock

#: The variable with a checkout of an older commit: some workers are started from it.
OLD = "CHAOS_OLD"


def main() -> int:
    options = _options()
    # So that workers and servers end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    old = _old()
    scale = _scale(options, old)
    sides: list[type[Side]] = [Stock] if options.only_stock else [Ours]
    sides += [Stock] if options.stock else []
    directory = Path(options.directory or tempfile.mkdtemp(prefix="chaos-"))
    _say(f"seed {options.seed}; logs in {directory}")
    results = []
    for number, side in enumerate(sides):
        home = directory / f"{number}-{side.name.replace(' ', '-')}"
        home.mkdir(parents=True)
        commit = old if side is Ours else None
        results.append(run(side, options.seed, scale, home, _say, commit))
    command = f"python -m tests.chaos {shlex.join(_told(options))}".strip()
    command = f"{OLD}=… {command}" if old else command
    files.replace(directory / "chaos.json", as_json(results, command), files.PUBLIC)
    report = as_markdown(results, scale, command)
    if options.report:
        files.replace(Path(options.report), report, files.PUBLIC)
    sys.stdout.write(report)
    faults = results[0].faults() if results[0].side == Ours.name else []
    for fault in faults:
        _say(f"FAILED: {fault}")
    return 1 if faults else 0


def _old() -> Path | None:
    """The checkout of the older commit, if there is one."""
    if not (name := os.environ.get(OLD)):
        return None
    path = Path(name).resolve()
    if not (path / "app" / "celery.py").is_file():
        sys.exit(f"{OLD}: {path} is no checkout of this project")
    return path


def _scale(options: argparse.Namespace, old: Path | None) -> Scale:
    scale = DEPLOYS if options.deploys else SHORT if options.short else FULL
    if old is not None:
        # It may count deliveries as attempts.
        scale = replace(scale, attempts=FULL.attempts)
    if options.client:
        scale = replace(scale, clients=(options.client,) * len(POOLS))
    return replace(scale, messages=options.messages) if options.messages else scale


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the schedule (default: 1)")
    parser.add_argument("--short", action="store_true", help="a run of about two minutes")
    parser.add_argument("--deploys", action="store_true", help="only restarts and a deploy")
    parser.add_argument("--messages", type=int, help="of each of the two tasks")
    parser.add_argument(
        "--client", choices=CLIENTS, help="calls SQS in each worker (default: both, in turn)"
    )
    parser.add_argument("--stock", action="store_true", help="stock Celery too, in a second run")
    parser.add_argument("--only-stock", action="store_true", help="stock Celery alone")
    parser.add_argument("--report", help="a file for the report, besides stdout")
    parser.add_argument("--directory", help="for logs and chaos.json (default: a temporary one)")
    return parser.parse_args()


def _told(options: argparse.Namespace) -> list[str]:
    flags = [f"--{name}" for name in ("short", "deploys", "stock") if getattr(options, name)]
    messages = ["--messages", str(options.messages)] if options.messages else []
    client = ["--client", options.client] if options.client else []
    return ["--seed", str(options.seed), *flags, *client, *messages]


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


if __name__ == "__main__":
    sys.exit(main())
