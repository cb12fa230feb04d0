"""Gives every task of an app the broker's behaviour, whatever its class is.

Celery lets a project choose the class of a task: `base=`, the `task_cls` of the app, a class that
is registered. Django's `DjangoTask`, Flask's documented factory and many libraries do so. The
broker asks the class of a task for what it does itself: retries, dead letters, shared jobs. So each
task gets a class that is made of its own one and of `Task`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery import Task as CeleryTask
from celery.app.registry import TaskRegistry
from kombu.utils.imports import symbol_by_name

from sqs_broker.errors import ConfigurationError
from sqs_broker.rules.misspelling import nearest
from sqs_broker.worker.failures import give_verdict

#: What the worker or `Task` sets, so that a class of a project cannot have its own.
RESERVED = ("retry", "__trace__", "policy", "most_retries", "eta_max", "brackets", "run_many",
            "run_given")  # fmt: skip


#: The options of a task that name exceptions.
OF_EXCEPTIONS = frozenset({"dead_letter_on", "suspect_on"})


class Outermost(CeleryTask):
    """What is called before a method of the project's class, which need not call `super()`."""

    #: See sqs_broker/worker/listeners.py.
    skips_call = True

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the task: its own `__call__` (Flask's opens a context), and within it the function.
        In a worker, turn a failure into a retry or a dead letter."""
        request, theirs = self.request, super().__call__
        is_worker = not (request.called_directly or request.is_eager)
        if is_worker and not getattr(request, "is_guarded", False):
            return self.classified(theirs, args, kwargs)
        return theirs(*args, **kwargs)

    def on_failure(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        """Celery's hook: tell the main process of a permanent failure, then call the task's own."""
        give_verdict(self.request, einfo)
        super().on_failure(exc, task_id, args, kwargs, einfo)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Celery's hook: take the options of the broker, after the task's own."""
        super().on_bound(app)
        cls.take_options(app)


class InSharedJob(CeleryTask):
    """The function of a task with `many`, within a `__call__` of the project's class."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function; in a shared job, take part in the work of all its messages."""
        return self.prepared(super().run)(*args, **kwargs)


def adopt(celery_app: Any) -> None:
    """Give the tasks of an app the broker's behaviour: those it has, and those it will have."""
    celery_app._tasks = Tasks(celery_app._tasks)


class Tasks(TaskRegistry):
    """Celery's table of the tasks of an app. Each task that it gets has the broker's behaviour."""

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        super().__init__()
        for name, task in tasks.items():
            self[name] = task

    def __setitem__(self, name: str, task: Any) -> None:
        mix(task)
        super().__setitem__(name, task)


def mix(task: Any) -> None:
    """Give a task the broker's behaviour. It remains as it is if that is not possible: `refuse`
    stops the worker then, and a producer can send it all the same."""
    from sqs_broker.worker.task import Task

    cls = type(task)
    if issubclass(cls, Outermost):
        return
    if issubclass(cls, Task) and not any(map(_comes_first, _own(cls))):
        return
    front = (Outermost, InSharedJob) if getattr(cls, "many", None) is not None else (Outermost,)
    behind = () if issubclass(cls, Task) else (Task,)
    kind: Any = type(cls)
    try:
        task.__class__ = kind(cls.__name__, (*front, cls, *behind), {"__module__": cls.__module__})
    except TypeError:
        # For example, a metaclass that wants more, or slots. `refuse` names the task.
        return


def refuse(tasks: Iterable[Any]) -> None:
    """Raise ConfigurationError, with each name and reason, if this worker cannot run a task by the
    rules of this broker."""
    found = [f"{task.name} ({why})" for task in tasks for why in _faults(task)]
    if found:
        raise ConfigurationError(
            f"These tasks cannot run on this broker: {'; '.join(found)}. "
            "Correct or remove that in the task or its class, or use another class."
        )


def _faults(task: Any) -> Iterator[str]:
    from sqs_broker.worker.task import Task

    if not isinstance(task, Task):
        yield f"its class {type(task).__name__} cannot be combined with that of the broker"
        return
    for base in _own(type(task)):
        if issubclass(base, Task):
            continue  # It knows that class, and overrides it on purpose.
        for name in sorted(vars(base).keys() & (_private_names(Task) | set(RESERVED))):
            yield f"its class {base.__name__} has its own `{name}`"
    if not issubclass(symbol_by_name(task.Request), symbol_by_name(Task.Request)):
        yield "it has its own `Request`"
    if _has_own_strategy(task):
        yield "it has its own `Strategy`"
    yield from _wrong_options(type(task))


def _has_own_strategy(task: Any) -> bool:
    """Whether the class passes its messages to the pool itself, and acknowledges them as it likes.
    celery-batches does, also after an exception of the function (0.11, `Batches.flush`)."""
    if type(task).start_strategy is not CeleryTask.start_strategy:
        return True
    return symbol_by_name(task.Strategy) is not symbol_by_name(CeleryTask.Strategy)


def _wrong_options(cls: Any) -> Iterator[str]:
    """What is wrong with the options of a task that the broker adds. They would have no effect, or
    raise an exception in the middle of a failure."""
    for name in OF_EXCEPTIONS:
        if not _are_exceptions(getattr(cls, name)):
            yield f"its `{name}` must be an exception class, or a tuple of them"
    if cls.many is not None and not callable(cls.many):
        yield "its `many` must be a function"
    for base in _own(cls):
        for name in vars(base).keys() - set(OF_EXCEPTIONS):
            if near := nearest(name, OF_EXCEPTIONS):
                yield f"its `{name}` is no option; did you mean `{near}`?"


def _are_exceptions(given: Any) -> bool:
    """Whether `except` takes this."""
    classes = given if isinstance(given, tuple) else (given,)
    return all(isinstance(each, type) and issubclass(each, BaseException) for each in classes)


def _own(cls: type) -> list[type]:
    """The project's classes of a task."""
    from sqs_broker.worker.task import Task

    ours = (*Task.__mro__, Outermost, InSharedJob)
    return [base for base in cls.__mro__ if base not in ours]


def _private_names(cls: type) -> set[str]:
    return {name for name in vars(cls) if name.startswith("_") and not name.startswith("__")}


def _comes_first(cls: type) -> bool:
    """Whether this class hides what the broker must do first."""
    return "__call__" in vars(cls) or "on_failure" in vars(cls) or "on_bound" in vars(cls)
