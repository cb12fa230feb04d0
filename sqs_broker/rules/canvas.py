"""What a message may ask of Celery besides its own task: Celery's built-in tasks, and callbacks.

A callback is a signature: a task that Celery calls after this one (`link`, `link_error`, `chain`,
`chord`), or that a built-in task calls (`celery.group`, `celery.chord`, `celery.chunks`). Who can
send a message can write any of them, so one message could become very many.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Self

from sqs_broker.errors import ConfigurationError
from sqs_broker.limits import MOST_BYTES
from sqs_broker.rules.outcomes import Refused, UnknownTask

#: How the names of Celery's built-in tasks begin.
PREFIX = "celery."

#: Celery's built-in tasks (celery 5.7 app/builtins.py).
BUILT_IN = (
    "celery.accumulate",
    "celery.backend_cleanup",
    "celery.chain",
    "celery.chord",
    "celery.chord_unlock",
    "celery.chunks",
    "celery.group",
    "celery.map",
    "celery.starmap",
)

#: Those whose arguments are signatures.
CONTAINERS = frozenset(BUILT_IN) - {"celery.accumulate", "celery.backend_cleanup"}

#: Those that call a task for each item of their argument `it`.
FOR_EACH = frozenset({"celery.chunks", "celery.map", "celery.starmap"})

#: The name that a signature of each type has (celery 5.7 canvas.py). Celery reads a signature by
#: its type, so a signature with another name could hide what it does.
NAME_OF_TYPE = {
    "chain": "celery.chain",
    "chord": "celery.chord",
    "chunks": "celery.chunks",
    "group": "celery.group",
    "xmap": "celery.map",
    "xstarmap": "celery.starmap",
}

#: The options of a signature that hold signatures.
LINKS = ("link", "link_error", "chain", "chord")

NO_SIGNATURE = "a callback is not a signature of Celery"


@dataclass(frozen=True)
class Canvas:
    """What messages may ask for. The default allows all of Celery's canvas that fits into a
    message."""

    built_in_tasks: Collection[str] = BUILT_IN
    """The built-in tasks that a message, or a callback, may call."""
    callback_tasks: Collection[str] = ()
    """Tasks of other workers that a callback may call. It may always call a task that is
    registered in the worker."""
    most_callbacks: int = 10_000
    """Most calls that the callbacks of one message may lead to. A message of 1 MiB has room for
    fewer, unless they multiply."""
    most_callback_bytes: int = MOST_BYTES
    """Most bytes of all callbacks of one message, as JSON."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Read the options. Raises ConfigurationError with the name of the option."""
        canvas = cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})
        for name in ("built_in_tasks", "callback_tasks"):
            names = getattr(canvas, name)
            if isinstance(names, str) or not all(isinstance(each, str) for each in names):
                raise ConfigurationError(f"{name} must be a list of task names.")
        for each in canvas.built_in_tasks:
            if not each.startswith(PREFIX):
                raise ConfigurationError(
                    f"built_in_tasks: {each!r} is not a task of Celery's own. "
                    f"These are {', '.join(BUILT_IN)}. Your own tasks need no option."
                )
        for name in ("most_callbacks", "most_callback_bytes"):
            number = getattr(canvas, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise ConfigurationError(f"{name} must be a whole number, at least 0.")
        return canvas

    def refuses(
        self, task: str, payload: Any, registered: Collection[str]
    ) -> Refused | UnknownTask | None:
        """Why a message may not run; None if it may.

        `payload` is [args, kwargs, embed]. UnknownTask names a task of a callback that is not
        registered here. A reason holds nothing else of the message.
        """
        args, kwargs, embed = payload
        links = [value for value in (embed or {}).values() if value]
        if not links and not task.startswith(PREFIX):
            return None  # Most messages.
        try:
            calls = _Walk(self, registered).calls(task, args, kwargs, links)
        except _NotAllowed as found:
            is_of_callback = isinstance(found.why, UnknownTask) and found.why.name != task
            # If no message may have callbacks, a worker that knows the task refuses it too.
            return _too_many(self) if is_of_callback and not self.most_callbacks else found.why
        if calls > 1:
            return self._too_large([links, args, kwargs] if task in CONTAINERS else links)
        return None

    def _too_large(self, callbacks: Any) -> Refused | None:
        if len(json.dumps(callbacks, default=str)) <= self.most_callback_bytes:
            return None
        return Refused(
            f"its callbacks are larger than {self.most_callback_bytes} bytes (most_callback_bytes)"
        )


class _NotAllowed(Exception):
    def __init__(self, why: Refused | UnknownTask) -> None:
        self.why = why


@dataclass(frozen=True)
class _Walk:
    """Reads a tree of signatures. Raises _NotAllowed."""

    canvas: Canvas
    registered: Collection[str]

    def calls(self, task: str, args: Any, kwargs: Any, links: Iterable[Any]) -> int:
        """How many calls this one leads to at most, itself included."""
        self._check(task)
        calls = 1
        if task in CONTAINERS:
            calls += sum(self._of(each) for each in _signatures(_inner(task, args, kwargs)))
        if task == "celery.chunks":
            calls += _parts(args, kwargs)
        # Celery copies the links of a group to each of its tasks.
        calls *= 1 + sum(self._of(each) for link in links for each in _as_list(link))
        if calls - 1 > self.canvas.most_callbacks:
            raise _NotAllowed(_too_many(self.canvas))
        return calls

    def _of(self, signature: Any) -> int:
        """How many calls a signature leads to at most."""
        match signature:
            case {"task": str(name)}:
                args, kwargs = signature.get("args") or [], signature.get("kwargs") or {}
                options = signature.get("options") or {}
            case _:
                raise _NotAllowed(Refused(NO_SIGNATURE))
        if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(options, dict)):
            raise _NotAllowed(Refused(NO_SIGNATURE))
        kind = signature.get("subtask_type")
        if kind and (not isinstance(kind, str) or NAME_OF_TYPE.get(kind) != name):
            raise _NotAllowed(Refused(NO_SIGNATURE))
        links = [options[link] for link in LINKS if options.get(link)]
        return self.calls(name, args, kwargs, links)

    def _check(self, task: str) -> None:
        if task not in self.registered and task not in self.canvas.callback_tasks:
            raise _NotAllowed(UnknownTask(task))
        if task.startswith(PREFIX) and task not in self.canvas.built_in_tasks:
            raise _NotAllowed(Refused(f"no message may call {task} here (built_in_tasks)"))


def _too_many(canvas: Canvas) -> Refused:
    return Refused(
        f"its callbacks lead to more than {canvas.most_callbacks} calls (most_callbacks)"
    )


def _inner(task: str, args: list[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a built-in task that can hold signatures."""
    return [*args, *(v for k, v in kwargs.items() if not (k == "it" and task in FOR_EACH))]


def _signatures(values: list[Any]) -> Iterator[Any]:
    """The outermost signatures in these values."""
    left = list(values)
    while left:
        match left.pop():
            case {"subtask_type": _} | {"task": str()} as signature:
                yield signature
            case dict(content):
                left.extend(content.values())
            case list(content):
                left.extend(content)


def _parts(args: list[Any], kwargs: dict[str, Any]) -> int:
    """How many messages `celery.chunks(task, it, n)` sends at most."""
    sized = [value for value in (*args, kwargs.get("it")) if isinstance(value, Sized)]
    items, n = max(map(len, sized), default=0), kwargs.get("n")
    return -(-items // n) if isinstance(n, int) and n > 0 else items


def _as_list(link: Any) -> list[Any]:
    return link if isinstance(link, list) else [link]
