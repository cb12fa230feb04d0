"""Whose fault it is that a message could not be taken: this machine's for now, or its own."""

import errno
from collections.abc import Iterator

from sqs_broker.errors import NoThread, Undecodable
from sqs_broker.rules.outcomes import Failed, Happened, NotTaken, Refused

#: What the system says where it has too little of something now, or its disk fails. Other errors of
#: the system may be the message's: a path made of what it holds, a time that no clock can show.
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

#: What Python says, by no class of its own, where a thread cannot start or a pool takes nothing
#: more (3.11 to 3.14 threading.py, concurrent/futures/thread.py).
NO_ROOM = ("can't start new thread", "can't create new thread", "cannot schedule new futures")

#: Exceptions that led to one another which are looked at; Python ends no such chain by itself.
LONGEST_CHAIN = 50


def untaken(exc: BaseException, refusal: str | None = None) -> Happened:
    """What happened to a message that this exception kept from being taken by the worker.

    A fault of this machine is no fault of the message, also where another exception hides it. What
    the decoder refuses is refused; so is anything else where `refusal` gives the reason why it can
    never be taken. All else is one failed attempt.
    """
    for one in _chain(exc):
        if is_of_machine(one):
            return NotTaken(type(one).__name__)
    if isinstance(exc, Undecodable):
        return Refused(exc.reason, "Undecodable")
    error = type(exc).__name__
    if refusal is not None:
        return Refused(refusal, error)
    return Failed(error, f"the worker could not take the message ({error})")


def is_of_machine(exc: BaseException) -> bool:
    """Whether an exception says that this machine cannot now: too little memory, too many threads,
    processes or descriptors, a full disk."""
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
    """An exception, and those that led to it."""
    for _ in range(LONGEST_CHAIN):
        if exc is None:
            return
        yield exc
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
