"""python -m bench.load: a load test of the API with a worker behind it, on this machine.

The exit status is 1 if an accepted registration has no final state at the end.
"""

import argparse
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import FrameType

from bench import lab
from bench.errors import BenchError
from bench.load import experiment, report, run, sending
from bench.load.shape import FULL, QUICK, Shape
from bench.traffic import ROOT
from devstack.errors import StackError
from sqs_broker.machine import files


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _stop)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="load-") as directory,
            lab.running(Path(directory), with_node=False) as at,
        ):
            if options.consumer_delay is not None:
                return _compare(at, options)
            return _load(at, options)
    except (BenchError, StackError, TimeoutError) as exc:
        sys.stderr.write(f"load: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _load(at: lab.Lab, options: argparse.Namespace) -> int:
    shape = _shape(options)
    shape.check()
    program = None if options.without_k6 else sending.k6()
    if program is None and not options.without_k6:
        _say("There is no k6 on this machine, so requests are sent by bench/load/clients.py.")
    measured = run.measure(at, shape, program, _say)
    _say(report.text(measured))
    options.out.mkdir(parents=True, exist_ok=True)
    files.replace(options.out / "report.txt", f"{report.text(measured)}\n", files.PUBLIC)
    try:
        written = report.write(measured, options.out)
    except ModuleNotFoundError as exc:
        _say(f"No charts and no page: {exc}. They need the dependency group load.")
        written = []
    for path in written:
        _say(f"wrote {path}")
    return 1 if measured.faults() else 0


def _compare(at: lab.Lab, options: argparse.Namespace) -> int:
    sides = experiment.measure(at, options.consumer_delay, options.visibility, _say)
    told = experiment.table(sides)
    _say(f"\n{told}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    files.replace(options.out / "experiment.md", f"{told}\n", files.PUBLIC)
    faults = sides[-1].faults()
    for fault in faults:
        _say(f"FAILED: {fault}")
    return 1 if faults else 0


def _shape(options: argparse.Namespace) -> Shape:
    shape = QUICK if options.quick else FULL
    names = ("rate", "spike_rate", "ramp", "steady", "spike", "rest", "most_clients")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    return replace(shape, **changes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a short run: under a minute")
    add("--rate", type=int, metavar="N", help=f"requests a second ({FULL.rate})")
    add("--spike-rate", type=int, metavar="N", help=f"those of the spike ({FULL.spike_rate})")
    for name in ("ramp", "steady", "spike", "rest"):
        add(f"--{name}", type=int, metavar="S", help=f"seconds of it ({getattr(FULL, name)})")
    add("--most-clients", type=int, metavar="N", help="most requests at the same time (300)")
    add("--without-k6", action="store_true", help="send with bench/load/clients.py")
    add(
        "--consumer-delay",
        type=int,
        metavar="S",
        help="compare with stock Celery: a task's seconds",
    )
    add(
        "--visibility", type=int, metavar="S", default=5, help="the visibility timeout for that (5)"
    )
    add("--out", type=Path, default=ROOT / ".local" / "load", help="where the report is written")
    return parser.parse_args()


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
