"""Who notices that Celery traces the run of a message, in the process that runs it.

Celery's trace takes about 60 us for each message. If nobody notices it, and the message succeeds,
a shared job goes without it (sqs_broker/worker/batch.py). These may notice it:

    the signals task_prerun, task_postrun and task_success (Django's fixup, OpenTelemetry)
    the methods before_start, on_success and after_return of the task
    a `__call__` of the project's own class of the task (Flask's factory)
    a `run` that was replaced on the task itself (Celery's autoretry_for, or a library)
    the brackets of the option `brackets`
    a result backend, and with it track_started, chords and worker_deduplicate_successful_tasks
    a loader with its own on_task_init or on_process_cleanup
    who reads Celery's line "Task … succeeded in …", of the logger celery.app.trace
    a library that has replaced Celery's tracer, or the function that calls it (Sentry, New Relic)
    what follows a message: link, chain and chord

A failure always goes through the trace: retries, errbacks, on_failure, task_failure.
"""

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any
from weakref import ref

from celery import Task as CeleryTask
from celery import signals
from celery.app import trace as celery_trace
from celery.backends.base import DisabledBackend
from celery.loaders.base import BaseLoader

from sqs_broker.worker.per_job import is_once_a_job

#: Methods of a task that Celery calls around a run that succeeds.
HOOKS = ("before_start", "on_success", "after_return")

#: Signals whose receivers Celery calls around a run that succeeds.
SIGNALS = (signals.task_prerun, signals.task_postrun, signals.task_success)

#: What Celery does after a success, by its name in the body of a message.
FOLLOWERS = ("callbacks", "chain", "chord")


def has_listeners(task: Any, trace: Callable[..., Any]) -> bool:
    """Whether somebody notices the trace of a run of this task. `trace`: Celery's function that
    traces it."""
    tracer, loader = task.__trace__, task.app.loader
    return (
        any(map(_has_receivers, SIGNALS))
        or bool(task.brackets)
        or "run" in vars(task)
        or type(task.backend) is not DisabledBackend
        or celery_trace.logger.isEnabledFor(logging.INFO)
        or not (_is_celerys(trace) and _is_celerys(tracer))
        or _has_methods(task, tracer, type(task).__call__, loader.__class__)
    )


def has_followers(embed: Mapping[str, Any] | None) -> bool:
    """Whether Celery does something after the success of a message, which its body names."""
    return embed is not None and any(map(embed.get, FOLLOWERS))


@lru_cache(maxsize=1024)
def _has_methods(task: Any, tracer: Any, call: Any, loader: Any) -> bool:
    """Whether a method of the task or of the loader notices a run. Celery looks for them when it
    builds the tracer (celery 5.7 app/trace.py, `build_tracer`), so the answer is the same for as
    long as this tracer is there, and the `__call__` of the class."""
    return (
        any(celery_trace.task_has_custom(task, hook) for hook in HOOKS)
        or not all(map(_is_skipped, type(task).__mro__))
        or not _is_plain(loader)
    )


def _has_receivers(signal: Any) -> bool:
    """Whether a living receiver wants a call for each message (celery 5.7
    utils/dispatch/signal.py)."""
    for _, receiver in signal.receivers or ():
        living = receiver() if isinstance(receiver, ref) else receiver
        if living is not None and not is_once_a_job(living):
            return True
    return False


def _is_skipped(cls: type) -> bool:
    """Whether a shared job may skip the `__call__` of this class of a task: it has none of its own,
    or says so in its own attribute `skips_call`."""
    return cls is CeleryTask or "__call__" not in vars(cls) or vars(cls).get("skips_call") is True


def _is_plain(loader: type[Any]) -> bool:
    return (
        loader.on_task_init is BaseLoader.on_task_init
        and loader.on_process_cleanup is BaseLoader.on_process_cleanup
    )


def _is_celerys(tracer: Any) -> bool:
    """Whether a function is Celery's own. A wrapper may have taken over its name and its module,
    but not its code."""
    return type(tracer) is FunctionType and tracer.__code__.co_filename == celery_trace.__file__
