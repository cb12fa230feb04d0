"""The base class of every task on this broker: it classifies failures and makes retries.

A retry is the same message, made visible later, or a copy of it. `request.retries` is the number of
runs that failed before, and `retry` raises if it is called with something that the same message
cannot express.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, ClassVar

from celery import Task as CeleryTask
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry

from sqs_broker.errors import ConfigurationError, EtaTooFar, label
from sqs_broker.machine.offloading import off_loop
from sqs_broker.observers.bracket import Bracket, around
from sqs_broker.observers.tracing import Tracing
from sqs_broker.options import Options
from sqs_broker.rules.canvas import FOR_EACH
from sqs_broker.rules.due import ETA_MAX
from sqs_broker.rules.happened import Rejected, Suspected
from sqs_broker.rules.policy import Policy
from sqs_broker.sqs.sender import deadline
from sqs_broker.worker.batch import Prepared, outcomes_of
from sqs_broker.worker.defaults import is_elsewhere
from sqs_broker.worker.failures import give_verdict, invalid_arguments, shorten

#: The reason if a task has used up the `max_retries` of its own call of `retry`.
FINAL = "the task has used the retries that its call allows; it failed most recently with {}"


#: Celery finds the class by its path.
CELERYS_REQUEST = "celery.worker.request:Request"


class RetryMisused(TypeError):
    """The task calls `retry` with what the same message cannot express. It would in each run."""


class RequestClass:
    """The class of the requests of a task: that of the broker which the app uses."""

    def __get__(self, task: Any, cls: Any = None) -> str:
        is_other = task is not None and task.app is not None and is_elsewhere(task.app)
        return CELERYS_REQUEST if is_other else "sqs_broker.worker.request:Request"


class Task(CeleryTask):
    """A task that retries unexpected failures with backoff, and dead-letters permanent ones.

    Options beyond Celery's: `dead_letter_on`, `suspect_on`, and `model`.
    """

    abstract = True
    Request = RequestClass()

    #: A shared job may skip the `__call__` of this class if the run succeeds
    #: (sqs_broker/worker/listeners.py). What a subclass overrides has no part in that.
    skips_call = True

    #: Permanent errors: a message that raises one is dead-lettered without a retry. The text of the
    #: exception is the reason, which operators see, so it must hold no personal data.
    dead_letter_on: ClassVar[tuple[type[Exception], ...]] = ()

    #: Exceptions that may mean an outage of a service that the task needs: see
    #: sqs_broker/rules/suspicion.py. Celery's two time limits may be among them.
    suspect_on: ClassVar[tuple[type[Exception], ...]] = ()

    #: The message model. Plain JSON can call only a task that has one.
    model: ClassVar[type | None] = None

    #: Does the work of many messages at once. It takes a list of Calls and returns, in the same
    #: order, the result of each or the exception that it failed with. Messages of a task with
    #: `many` share pool jobs (sqs_broker/worker/batches.py); the task's time limits apply to the
    #: whole job.
    many: ClassVar[Callable[[Sequence[Any]], Sequence[Any]] | None] = None

    #: Whether `many` may ask its Calls for their `request`.
    needs_request: Any = True

    #: The queue's policy, limited by the task's own `max_retries`.
    policy: ClassVar[Policy] = Policy()

    #: Most retries that a call of `retry` may ask for: the queue's `max_attempts` minus one. None
    #: means no limit, for Celery's own tasks.
    most_retries: ClassVar[int | None] = None

    #: Most seconds until a message or a retry is due: the option `eta_max`.
    eta_max: ClassVar[float] = ETA_MAX

    #: Context managers around each run (sqs_broker/observers/bracket.py).
    brackets: ClassVar[tuple[Bracket, ...]] = ()

    #: Makes the spans of each run (the option `tracing`).
    tracing: ClassVar[Tracing | None] = None

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Set `max_retries` from the queue's policy if the task does not set it itself.

        Raises ConfigurationError if the task's number is above the policy's, or None.
        """
        super().on_bound(app)
        cls.take_options(app)

    @classmethod
    def take_options(cls, app: Any) -> None:
        """Take the numbers of the app's options. Raises as `on_bound` does."""
        if is_elsewhere(app):
            return
        # A Lambda function accepts FIFO queues. The transport of a worker and a producer does not.
        options = Options.read(app.conf.broker_transport_options, accepts_fifo=True)
        policy, cls.brackets, cls.eta_max = options.policy, options.brackets, options.eta_max
        cls.tracing = options.tracing
        if cls.name.startswith("celery."):
            cls.policy = policy
            return  # Celery's own tasks keep Celery's number of retries.
        cls.most_retries = policy.max_attempts - 1
        if not _sets_max_retries(cls):
            cls.max_retries = policy.max_attempts - 1
        elif cls.max_retries is None:
            raise ConfigurationError(
                f"Task {cls.name}: max_retries=None means unlimited retries, which SQS does not "
                "have. Set a number, at most max_attempts minus one."
            )
        elif cls.max_retries > policy.max_attempts - 1:
            raise ConfigurationError(
                f"Task {cls.name}: max_retries ({cls.max_retries}) must be at most max_attempts "
                f"({policy.max_attempts}) minus one. Raise max_attempts or lower max_retries."
            )
        cls.policy = policy.limited_to(cls.max_retries)

    def shown(self, args: Any, kwargs: Any) -> tuple[str, str]:
        """The arguments as logs, events and Flower may show them: without any value or name from
        the message, unless it is known not to be personal data."""
        return f"({len(args)} hidden)" if args else "()", f"{{{len(kwargs)} hidden}}"

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Send the task. The message shows the arguments as `shown` does, and has a time limit only
        if this call sets one: the worker knows the task's own.

        Raises EtaTooFar if it is due later than the option `eta_max` allows."""
        if (options.get("countdown") or 0) > self.eta_max:
            # Celery cannot even write a time after the year 9999.
            raise EtaTooFar(self.eta_max)
        # Celery would add the limits that the task has in this process. The worker could not tell
        # those from the limits of this call.
        options.setdefault("time_limit", None)
        options.setdefault("soft_time_limit", None)
        if not {"argsrepr", "kwargsrepr"} <= options.keys():
            shown = self.shown(args or (), kwargs or {})
            options.setdefault("argsrepr", shown[0])
            options.setdefault("kwargsrepr", shown[1])
        return super().apply_async(args, kwargs, *rest, **options)

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """`delay` for coroutines: it does not block the event loop."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """`apply_async` for coroutines: it does not block the event loop. Raises what that raises.

        `publish_timeout` counts from the call. If the caller is cancelled, the message may have
        been sent.
        """
        call = partial(self.apply_async, args, kwargs, **options)
        if is_elsewhere(self.app):
            return await off_loop(call)
        seconds = Options.read(self.app.conf.broker_transport_options).publish_timeout
        with deadline(monotonic() + seconds):
            return await off_loop(call)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the task. In a worker, turn a failure into a retry or a dead letter."""
        request = self.request
        if request.called_directly:
            return super().__call__(*args, **kwargs)
        if request.is_eager:
            return self.run(*args, **kwargs)
        return self.guarded(self.run, args, kwargs)

    def guarded(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call `run` in a worker, where a message that shares a job runs with the others instead.
        The outermost call of a run turns a failure into a retry or a dead letter."""
        run = self.prepared(run)
        if getattr(self.request, "is_guarded", False):
            return run(*args, **kwargs)
        return self.classified(run, args, kwargs)

    def prepared(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """What to call in place of `run`: in a shared job, the work of all its messages."""
        prepared = getattr(self.request, "prepared", None)
        return prepared if isinstance(prepared, Prepared) else run

    def classified(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call `run`, and turn a failure into a retry or a dead letter."""
        request = self.request
        request.is_guarded, request.verdict = True, None
        try:
            return self._classified(run, args, kwargs)
        except (Ignore, Reject):
            raise
        except Exception as exc:
            if is_elsewhere(self.app):
                raise  # What a failure means there is Celery's to say.
            hint = self._hint(exc)
            if request.verdict is not None or hint is None or not self.acks_late:
                raise
            delay = exc.when if isinstance(exc, Retry) else self.retry_delay(exc)
            raise Suspected(
                label(hint), isinstance(exc, Retry), delay, self.is_blameless(hint)
            ) from exc
        finally:
            request.is_guarded = False

    def on_failure(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        """Celery's hook for a run that failed for good. It tells the main process of a permanent
        failure, so `super().on_failure` must be called by a subclass."""
        give_verdict(self.request, einfo)
        super().on_failure(exc, task_id, args, kwargs, einfo)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Exception | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Raise celery's Retry, so that the same message is delivered again.

        `countdown` is in seconds and `eta` is a time; without them the policy's backoff is used.
        After `max_retries` retries, raises `exc`, or MaxRetriesExceededError if that is None, and
        the message is dead-lettered. `max_retries` cannot exceed the queue's `max_attempts` minus
        one. Raises EtaTooFar if the option `eta_max` does not allow the time. Raises RetryMisused,
        a TypeError, for what the same message cannot express: other arguments or options, or
        `throw=False`. If the task does not catch it, the message is dead-lettered at once. An
        option that is None asks for nothing.
        """
        if self.request.called_directly or self.request.is_eager or is_elsewhere(self.app):
            return super().retry(
                args, kwargs, exc, throw, eta, countdown, max_retries=max_retries, **options
            )
        asked = (args, kwargs, *options.values())
        if any(value is not None for value in asked) or not throw:
            raise RetryMisused(
                f"Task {self.name}: a retry delivers the same message again, so retry() takes no "
                "args, kwargs, throw=False or options of apply_async. Send a new task instead."
            )
        if isinstance(exc, RetryMisused):
            raise exc  # Of a call of `retry` that Celery's `autoretry_for` has caught.
        if not self.acks_late:
            raise TypeError(
                f"Task {self.name}: with acks_late=False its message is deleted before it runs, so "
                "SQS cannot deliver it again. Set acks_late=True."
            )
        limit = self._limit(max_retries)
        if self.request.retries >= limit:
            # For `_is_final`: this failure is final even if the task has retries left.
            self.request.has_used_its_retries = True
            if exc is not None:
                raise exc
            raise MaxRetriesExceededError(f"{self.name} has used its {limit} retries")
        delay = self._delay(eta, countdown)
        if delay > self.eta_max:
            raise EtaTooFar(self.eta_max)
        raise Retry(exc=exc, when=delay)

    def run_many(self, calls: Sequence[Any]) -> Sequence[Any]:
        """The outcome of each call of a batch, in order.

        Raises what `many` raises, and RuntimeError if it does not return one outcome for each call.
        """
        return self.run_given(calls, calls)

    def run_given(self, calls: Sequence[Any], given: Sequence[Any]) -> Sequence[Any]:
        """The outcome of each call, in order. `many` gets what is `given` for them instead.

        Raises as `run_many` does.
        """
        # Read from the class: read from the instance, it would be a bound method.
        many = type(self).many
        assert many is not None
        tracing = self.tracing
        with tracing.work(self.name, [c.request for c in calls]) if tracing else nullcontext():
            return outcomes_of(self.name, many(given), len(calls))

    def retry_delay(self, exc: Exception) -> float | None:
        """Seconds until a failure is retried; None means the policy's backoff."""
        return None

    def is_blameless(self, hint: BaseException) -> bool:
        """Whether the message cannot have caused this exception of `suspect_on`, even if there is
        no outage: for example, only this process cannot reach the service. Such a message is
        retried until SQS allows no further delivery."""
        return False

    def _limit(self, asked: int | None) -> int:
        # A task may set its `max_retries` to None while it runs, as celery-heimdall does.
        wanted = [self.max_retries if asked is None else asked, self.most_retries]
        return min((limit for limit in wanted if limit is not None), default=sys.maxsize)

    def _delay(self, eta: datetime | None, countdown: float | None) -> float:
        if eta is not None:
            aware = eta if eta.tzinfo else eta.replace(tzinfo=UTC)
            return max(0.0, (aware - datetime.now(UTC)).total_seconds())
        if countdown is not None:
            return countdown
        return self.policy.backoff(self.request.retries + 1)

    def _hint(self, exc: BaseException | None) -> BaseException | None:
        """The exception of `suspect_on`: `exc`, its cause, and so on; None if there is none."""
        while exc is not None and not isinstance(exc, self.suspect_on):
            exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
        return exc

    def _classified(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # Failures are classified here, in the pool process: on its way to the main process an
        # exception may lose its class (celery 5.7 utils/serialization.py).
        try:
            return self._bracketed(run, args, kwargs)
        except (Ignore, Reject, Retry):
            raise
        except self._permanent(args, kwargs) as exc:
            # Raised as it is: for Celery, and for libraries that watch it, this run has failed.
            self.request.verdict = Rejected(str(exc), label(exc))
            raise
        except Exception as exc:
            if not self.acks_late or is_elsewhere(self.app):
                raise  # The message is deleted already, or another broker has it.
            if (reason := self._final_reason(exc)) is not None:
                self.request.verdict = Rejected(reason, label(exc))
                raise
            # Broad on purpose: an unclassified failure may be temporary, so it is retried.
            return self.retry(exc=exc, countdown=self.retry_delay(exc))

    def _permanent(self, args: Any, kwargs: Any) -> Any:
        """The exceptions after which no retry follows. `celery.map` and `celery.starmap` have those
        of the task that they call."""
        if self.name not in FOR_EACH:
            return self.dead_letter_on
        signature: Any = kwargs.get("task") or next(iter(args), {})
        return getattr(self.app.tasks.get(signature.get("task")), "dead_letter_on", ())

    def _final_reason(self, exc: Exception) -> str | None:
        """Why no retry can follow this exception, although the task has some left; None if one
        can."""
        if (invalid := invalid_arguments(exc)) is not None:
            return invalid
        if isinstance(exc, RetryMisused):
            # Its text is ours. A further run would do the same, or end as if all were well.
            return str(exc)
        return FINAL.format(label(exc)) if self._is_final(exc) else None

    def _is_final(self, exc: Exception) -> bool:
        """Whether the run has used up the retries that its own call of `retry` allows, while the
        task has more. A failure that an outage may have caused is not final."""
        if not getattr(self.request, "has_used_its_retries", False) or self._hint(exc) is not None:
            return False
        return self.max_retries is None or bool(self.request.retries < self.max_retries)

    def _bracketed(self, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not self.brackets:
            return _shortened(run, args, kwargs)
        with around(self.brackets, self, self.request):
            return _shortened(run, args, kwargs)


def _shortened(run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call `run`. Nobody after it gets a traceback that is too long to be shown."""
    try:
        return run(*args, **kwargs)
    except Exception as exc:
        shorten(exc)
        raise


def _sets_max_retries(cls: type[Task]) -> bool:
    own = cls.__mro__[: cls.__mro__.index(Task)]
    return any("max_retries" in vars(base) for base in own)
