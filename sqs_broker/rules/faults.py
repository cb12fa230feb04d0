"""Decides why the worker could not accept a message: this machine's state, or the message."""

import errno
from collections.abc import Iterator

from sqs_broker.errors import NoThread, Undecodable
from sqs_broker.rules.outcomes import Failed, Happened, NotTaken, Refused

#: Error numbers which mean that a resource of the system is short now, or that a disk fails. Other
#: errors of the system may be caused by the message: a path made from its content, a time out of
#: range.
TOO_LITTLE = frozenset(
    {
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
    }
)

#: The texts of the RuntimeErrors that Python raises if a thread cannot start, or if a pool accepts
#: no more work (3.11 to 3.14 threading.py, concurrent/futures/thread.py).
NO_ROOM = ("can't start new thread", "can't create new thread", "cannot schedule new futures")

#: Most exceptions of one chain (`__cause__`, `__context__`) that are checked: it may be a loop.
LONGEST_CHAIN = 50


def untaken(exc: BaseException, refusal: str | None = None) -> Happened:
    """What happened to a message that the worker could not accept because of this exception.

    If this machine caused it, directly or behind other exceptions, the message was not taken, and
    no attempt counts. If the decoder raised it, or if `refusal` gives a reason why the message can
    never be accepted, the message is refused. Otherwise it is one failed attempt.
    """
    for one in _chain(exc):
        if is_of_machine(one):
            return NotTaken(type(one).__name__)
    if isinstance(exc, Undecodable):
        return Refused(exc.reason, "Undecodable")
    error = type(exc).__name__
    if refusal is not None:
        return Refused(refusal, error)
    return Failed(error, f"the worker could not accept the message ({error})")


def is_of_machine(exc: BaseException) -> bool:
    """Whether an exception means that this machine lacks a resource now: memory, threads,
    processes, descriptors, disk space."""
    match exc:
        case MemoryError() | NoThread() | BlockingIOError() | InterruptedError():
            return True
        case OSError(errno=number):
            return number in TOO_LITTLE
        case RuntimeError(args=(str(text), *_)):
            return text.startswith(NO_ROOM)
        case _:
            return False


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """An exception, its cause, the cause of that, and so on."""
    for _ in range(LONGEST_CHAIN):
        if exc is None:
            return
        yield exc
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
