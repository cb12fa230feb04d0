"""A task whose arguments are a message model, checked at the caller and again in the worker."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import ValidationError

from app.errors import PermanentError, TransientError
from app.messages import Message, Provenance, Source, field_faults, fields_of
from app.outage import SUSPECT_ON, is_unreachable
from sqs_broker.worker.batch import Call
from sqs_broker.worker.task import Task

#: Most characters of one shown value.
LONGEST_SHOWN = 128


class InvalidMessage(PermanentError, TypeError):
    """The arguments do not match the message model. The text names each invalid field."""


class TypedTask(Task):
    """`@app.task(name="registerUser", model=Registration)` on a function of (message, provenance).

    Callers pass the fields of the model, by position or by name. If one is invalid, the call raises
    InvalidMessage and sends nothing. In the worker, InvalidMessage or any other PermanentError
    dead-letters the message; any other failure is retried. A task without a model is an ordinary
    Celery task.
    """

    abstract = True
    # Celery would check the arguments against the function. The model does that, in both spellings.
    typing = False
    dead_letter_on = (PermanentError,)
    suspect_on = SUSPECT_ON
    model: ClassVar[type[Message] | None] = None

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Check the arguments and send the task. Raises InvalidMessage, SettingsError or
        PublishError before anything is sent, kombu's OperationalError if SQS cannot be reached, and
        SqsError (sqs_broker/sqs/errors.py) if SQS refuses the message."""
        if self.model is not None and not self._is_sent_by_a_task(options):
            self._message(tuple(args or ()), dict(kwargs or {}))
        return super().apply_async(args, kwargs, *rest, **options)

    def shown(self, args: Any, kwargs: Any) -> tuple[str, str]:
        """The values of the fields that the model allows to show, and the names of the others."""
        if self.model is None:
            return super().shown(args, kwargs)
        try:
            message = self._message(tuple(args), dict(kwargs))
        except InvalidMessage:
            return super().shown(args, kwargs)
        given = message.model_fields_set
        fields = [
            f"{name}: {getattr(message, name)!r:.{LONGEST_SHOWN}}"
            if name in self.model.shown
            else f"{name}: hidden"
            for name in self.model.model_fields
            if name in given
        ]
        return "()", "{" + ", ".join(fields) + "}"

    def retry_delay(self, exc: Exception) -> float | None:
        """The `retry_after` of a TransientError; None for any other failure."""
        return exc.retry_after if isinstance(exc, TransientError) else None

    def is_blameless(self, hint: BaseException) -> bool:
        """Whether this process could not reach MongoDB."""
        return is_unreachable(hint)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the task's function with the message that the arguments form."""
        if self.model is None:
            return super().__call__(*args, **kwargs)
        if self.request.called_directly or self.request.is_eager:
            return self._run_typed(*args, **kwargs)
        return self._guarded(self._run_typed, args, kwargs)

    def run_many(self, calls: Sequence[Any]) -> Sequence[Any]:
        """The outcomes of `many`, which takes pairs of (message, provenance). A message that its
        model refuses is not passed to it."""
        if self.model is None:
            return super().run_many(calls)
        read = [self._read(call) for call in calls]
        pairs = [pair for pair in read if isinstance(pair, tuple)]
        outcomes = iter(super().run_many(pairs) if pairs else ())
        return [next(outcomes) if isinstance(pair, tuple) else pair for pair in read]

    def _read(self, call: Call) -> tuple[Message, Provenance] | Exception:
        try:
            return self._message(tuple(call.args), call.kwargs), _provenance(call.request)
        except Exception as exc:
            # Broad on purpose: a model's check may raise anything, and the other messages must run.
            return exc

    def _run_typed(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.run(self._message(args, kwargs), _provenance(self.request))

    def _message(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
        assert self.model is not None
        try:
            return self.model.model_validate(fields_of(self.model, args, kwargs))
        except ValidationError as exc:
            raise InvalidMessage(f"{self.name}: {field_faults(exc)}") from None
        except TypeError as exc:
            raise InvalidMessage(f"{self.name}: {exc}") from None

    @staticmethod
    def _is_sent_by_a_task(options: dict[str, Any]) -> bool:
        # An error here would fail the task that sends this one, although its work is done. The
        # worker that receives this message checks it, and dead-letters it if it is invalid.
        return bool(options.get("parent_id"))


def _provenance(request: Any) -> Provenance:
    provenance: Provenance | None = getattr(request, "delivery", None)
    if provenance is not None:
        return provenance
    # The task was called without a queue: directly, with apply(), or eagerly.
    id_ = request.id
    return Provenance(id_ or "", id_ is not None, Source.CELERY, 1, datetime.now(UTC))
