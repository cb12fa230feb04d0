"""python -m devstack: start the stack, show two registrations, then run until Ctrl+C."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from app.errors import SettingsError
from devstack import demonstration, stack
from devstack.errors import StackError


class Stop(BaseException):
    """A signal asked to stop. A BaseException, so that no `except Exception` catches it."""


def main() -> int:
    options = _options()
    is_abandoned = _abandonment(options.with_parent)
    _stop_on_signals()
    # The stack must not use the user's own AWS profile or endpoint.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]

    served = False
    try:
        with stack.running(options.directory.resolve(), _say) as running:
            demonstration.show(running, _say)
            if options.demo:
                _say("\nBoth users are stored.")
                return 0
            _say(demonstration.what_next(running))
            _say("Serving until Ctrl+C.")
            served = True
            stack.serve(running, until=is_abandoned)
    except Stop as stop:
        _say("Stopped. Queues and database are kept.")
        return 0 if served else 128 + int(stop.args[0])
    except (StackError, SettingsError) as exc:
        print(f"devstack: {exc}", file=sys.stderr, flush=True)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m devstack", description=__doc__)
    parser.add_argument("--demo", action="store_true", help="stop once both users are stored")
    parser.add_argument(
        "--directory",
        type=Path,
        default=stack.ROOT / ".local",
        help="where data, logs and stack.env are kept (default: .local)",
    )
    parser.add_argument(
        "--with-parent",
        action="store_true",
        help="stop when the process that started this one has ended",
    )
    return parser.parse_args()


def _abandonment(with_parent: bool) -> Callable[[], bool]:
    """A function that returns whether the terminal is closed or, with `with_parent`, the parent has
    ended."""
    parent = os.getppid() if with_parent else None
    has_terminal = sys.stdout.isatty()

    def is_abandoned() -> bool:
        without_parent = parent is not None and os.getppid() != parent
        # A closed terminal sends SIGHUP only to the leader of its session, which may be make.
        return without_parent or (has_terminal and not sys.stdout.isatty())

    return is_abandoned


def _stop_on_signals() -> None:
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    # If SIGHUP is ignored from the start, nohup runs this, to continue without the terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    # The stop has a deadline of its own, and a second Ctrl+C must not interrupt it.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Stop(number)


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:
        # Nothing reads the output any more. The stack must still run, and must stop completely.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
