"""A task whose arguments are a message model, checked at the caller and again in the worker."""

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar

from pydantic import ValidationError

from app.errors import PermanentError, TransientError
from app.messages import (
    Message,
    Provenance,
    Source,
    field_faults,
    fields_of,
    names_of_unknown,
    read_strictly,
    unknown_fields,
)
from app.shown import quick_text, text_of
from sqs_broker.errors import ConfigurationError
from sqs_broker.worker.batch import Call
from sqs_broker.worker.task import Task

logger = logging.getLogger(__name__)

#: Most names of unknown fields that one process logs for each task.
MOST_UNKNOWN = 50

#: The options of a call that hold the tasks to call after it.
CANVAS = ("chain", "link", "link_error", "chord")


class InvalidMessage(PermanentError, TypeError):
    """The arguments do not match the message model. The text names each invalid field."""


class _SuspectOn:
    """The exceptions that an outage of MongoDB may cause. Only a process that runs tasks needs
    them, and MongoDB's driver, which defines them."""

    def __get__(self, *_: object) -> tuple[type[Exception], ...]:
        return _suspected()


@cache
def _suspected() -> tuple[type[Exception], ...]:
    from app.outage import SUSPECT_ON

    return SUSPECT_ON


class TypedTask(Task):
    """`@app.task(name="registerUser", model=Registration)` on a function of (message, provenance).

    Callers pass the fields of the model, by position or by name. If one is invalid or unknown, the
    call raises InvalidMessage and sends nothing. In the worker, InvalidMessage or any other
    PermanentError dead-letters the message; any other failure is retried. The worker ignores an
    unknown field of a message, and logs that once for each name in each process. A task without a
    model is an ordinary Celery task.
    """

    abstract = True
    # Celery would check the arguments against the function. The model does that, in both spellings.
    typing = False
    dead_letter_on = (PermanentError,)
    suspect_on = _SuspectOn()
    model: ClassVar[type[Message] | None] = None
    #: In a shared job `run_many` reads the messages, and not `__call__` (see
    #: sqs_broker/worker/listeners.py).
    skips_call = True
    #: The names of unknown fields that this process has logged.
    _logged: ClassVar[set[str]] = set()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Take the policy from the options, as Task does. Raises ConfigurationError, also if the
        function cannot take a message and its provenance."""
        super().on_bound(app)
        cls._logged = set()
        if cls.model is not None:
            cls._check_function()

    @classmethod
    def _check_function(cls) -> None:
        is_bound = not isinstance(inspect.getattr_static(cls, "run"), staticmethod)
        try:
            inspect.signature(cls.run).bind(*([None] * (2 + is_bound)))
        except TypeError as exc:
            raise ConfigurationError(
                f"Task {cls.name}: the function of a task with a message model must take (message, "
                f"provenance), but: {exc}. Change the function."
            ) from None

    def signature(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """A signature of the task. Raises InvalidMessage for an unknown field. What is missing may
        still be given by the call, or by the task before it in a chain."""
        self.refuse_unknown(options.get("kwargs", rest[0] if rest else None) or {})
        return super().signature(args, *rest, **options)

    #: Celery's older name.
    subtask = signature

    def refuse_unknown(self, kwargs: Mapping[str, Any]) -> None:
        """Raise InvalidMessage if one of these arguments is no field of the model."""
        if self.model is None:
            return
        try:
            faults = unknown_fields(self.model, fields_of(self.model, (), dict(kwargs)))
        except TypeError as exc:
            raise InvalidMessage(f"{self.name}: {exc}") from None
        if faults:
            raise InvalidMessage(f"{self.name}: {'; '.join(faults)}")

    def checked(self, args: Any, kwargs: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """These options of apply_async, with the arguments as they are shown. Raises InvalidMessage
        unless a caller may send these arguments with them."""
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        # If another task sends this one, an error here would fail that task, although its work is
        # done. The worker that receives this message checks it, and dead-letters it if it is
        # invalid.
        if self.model is None or options.get("parent_id"):
            shown = self.shown(args, kwargs)
        else:
            shown = "()", text_of(self._given(args, kwargs))
        return {"argsrepr": shown[0], "kwargsrepr": shown[1], **options}

    def check_received(self, args: Any, kwargs: Any) -> None:
        """Raise InvalidMessage unless a worker would run a message with these arguments."""
        if self.model is not None:
            self._message(tuple(args), dict(kwargs))

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Check the arguments and send the task. Raises InvalidMessage, SettingsError or another
        PublishError before anything is sent, and SendError (sqs_broker/sqs/sender.py) if SQS does
        not confirm the message in time, or refuses it."""
        options = self.checked(args, kwargs, options)
        return super().apply_async(args, kwargs, *rest, **options)

    def shown(self, args: Any, kwargs: Any) -> tuple[str, str]:
        """The values of the fields that the model allows to show, and the names of the others."""
        if self.model is None:
            return super().shown(args, kwargs)
        # The pool process reads the message anyway, so here most are read in a quicker way.
        text = quick_text(self.model, args, kwargs)
        if text is None:
            try:
                text = text_of(self._message(tuple(args), dict(kwargs)))
            except InvalidMessage:
                return super().shown(args, kwargs)
        return "()", text

    def retry_delay(self, exc: Exception) -> float | None:
        """The `retry_after` of a TransientError; None for any other failure."""
        return exc.retry_after if isinstance(exc, TransientError) else None

    def is_blameless(self, hint: BaseException) -> bool:
        """Whether this process could not reach MongoDB."""
        from app.outage import is_unreachable

        return is_unreachable(hint)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the task's function with the message that the arguments form."""
        if self.model is None:
            return super().__call__(*args, **kwargs)
        if self.request.called_directly or self.request.is_eager:
            return self._run_typed(*args, **kwargs)
        return self.guarded(self._run_typed, args, kwargs)

    @property
    def needs_request(self) -> bool:
        """Whether a shared job needs Celery's requests: for its span, but not to make pairs of
        `Call.given`."""
        return self.model is None or self.tracing is not None

    def run_many(self, calls: Sequence[Any]) -> Sequence[Any]:
        """The outcomes of `many`, which takes pairs of (message, provenance). A message that its
        model refuses is not passed to it."""
        if self.model is None:
            return super().run_many(calls)
        read = [self._read(call) for call in calls]
        valid = [place for place, pair in enumerate(read) if isinstance(pair, tuple)]
        if len(valid) == len(read):
            return self.run_given(calls, read)
        outcomes: dict[int, Any] = dict(enumerate(read))
        if valid:
            done = self.run_given(
                [calls[place] for place in valid], [read[place] for place in valid]
            )
            outcomes |= zip(valid, done, strict=True)
        return list(outcomes.values())

    def _read(self, call: Call) -> tuple[Message, Provenance] | Exception:
        try:
            return self._message(tuple(call.args), call.kwargs), _provenance(call.given)
        except Exception as exc:
            # Broad on purpose: a model's check may raise anything, and the other messages must run.
            return exc

    def _run_typed(self, /, *args: Any, **kwargs: Any) -> Any:
        is_a_call = self.request.called_directly or self.request.is_eager
        message = self._given(args, kwargs) if is_a_call else self._message(args, kwargs)
        return self.run(message, _provenance(vars(self.request)))

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
        """The message that a caller gives. Raises InvalidMessage."""
        assert self.model is not None
        try:
            return read_strictly(self.model, fields_of(self.model, args, kwargs))
        except ValidationError as exc:
            raise InvalidMessage(f"{self.name}: {field_faults(exc, self.model)}") from None
        except TypeError as exc:
            raise InvalidMessage(f"{self.name}: {exc}") from None

    def _message(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
        """The message that came from a queue. Raises InvalidMessage."""
        assert self.model is not None
        try:
            return self._read_message(fields_of(self.model, args, kwargs))
        except ValidationError as exc:
            raise InvalidMessage(f"{self.name}: {field_faults(exc)}") from None
        except TypeError as exc:
            raise InvalidMessage(f"{self.name}: {exc}") from None

    def _read_message(self, fields: dict[str, Any]) -> Message:
        assert self.model is not None
        try:
            return read_strictly(self.model, fields)
        except ValidationError as exc:
            unknown = names_of_unknown(exc, self.model)
        message = self.model.model_validate(fields)
        self._log_unknown(unknown)
        return message

    def _log_unknown(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._logged or len(self._logged) >= MOST_UNKNOWN:
                continue
            self._logged.add(name)
            logger.warning(
                "A message of %s has a field that this release does not know: %s. It is ignored.",
                self.name,
                name,
                extra={"event": "message.unknown_field", "task": self.name, "reason": name},
            )


def refuse_unknown(following: Any, tasks: Mapping[str, Any]) -> None:
    """Raise InvalidMessage if a task that is to follow a call has an unknown field. `following` is
    a signature, or some of them; `tasks` are those of the app."""
    if isinstance(following, list | tuple):
        for one in following:
            refuse_unknown(one, tasks)
    if not isinstance(following, Mapping):
        return
    task, kwargs = tasks.get(str(following.get("task"))), following.get("kwargs") or {}
    if isinstance(task, TypedTask) and task.model is not None:
        task.refuse_unknown(kwargs)
    else:
        # It may be a group, a chain or a chord: its tasks are its arguments.
        refuse_unknown(list(kwargs.values()), tasks)
    options = following.get("options") or {}
    refuse_unknown([options.get(name) for name in CANVAS], tasks)


def _provenance(request: Mapping[str, Any]) -> Provenance:
    """Where a message came from, by what is known of it."""
    provenance: Provenance | None = request.get("delivery")
    if provenance is not None:
        return provenance
    # The task was called without a queue: directly, with apply(), or eagerly.
    id_ = request.get("id")
    return Provenance(id_ or "", id_ is not None, Source.CELERY, 1, datetime.now(UTC))
