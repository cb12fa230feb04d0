"""Remote-control commands that work differently on this broker, or are not supported.

To register a name again is Celery's own way to replace a command (celery 5.7 worker/control.py,
`Panel.register`). Arguments and replies are the same as in Celery.
"""

from typing import Any

from celery.app.utils import filter_hidden_settings
from celery.worker import control
from celery.worker.control import control_command, inspect_command, nok

from sqs_broker.errors import ConfigurationError
from sqs_broker.options import Options

#: Celery's own commands, which the ones below call.
_stats, _pool_grow, _pool_shrink = control.stats, control.pool_grow, control.pool_shrink
_time_limit, _disable_events = control.time_limit, control.disable_events
_add_consumer, _cancel_consumer = control.add_consumer, control.cancel_consumer


@inspect_command()
def stats(state: Any, **_: Any) -> Any:
    """Request worker statistics/information."""
    reply = _stats(state)
    # Celery's reply has the connection's options in clear text, with the credentials for SQS.
    reply["broker"] = filter_hidden_settings(dict(reply.get("broker") or {}))
    reply["control"] = {"lost_events": state.consumer.connection.transport.control.lost}
    return reply


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(state: Any, n: int = 1, **_: Any) -> Any:
    """Grow pool by n processes."""
    return _pool_grow(state, n) if _has_processes(state) else _fixed_pool(state)


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(state: Any, n: int = 1, **_: Any) -> Any:
    """Shrink pool by n processes."""
    return _pool_shrink(state, n) if _has_processes(state) else _fixed_pool(state)


@control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task_name> <soft_secs> [hard_secs]",
)
def time_limit(
    state: Any,
    task_name: str | None = None,
    hard: float | None = None,
    soft: float | None = None,
    **_: Any,
) -> Any:
    """Tell worker(s) to modify the time limit for task by type."""
    conf = state.app.conf
    try:
        Options.read(conf.broker_transport_options).policy.check(hard or conf.task_time_limit)
    except ConfigurationError as exc:
        return nok(str(exc))
    reply = _time_limit(state, task_name=task_name, hard=hard, soft=soft)
    # Celery's strategies keep the limits that they were created with (celery 5.7
    # worker/request.py), so they are created again.
    state.consumer.update_strategies()
    return reply


@control_command()
def disable_events(state: Any) -> Any:
    """Tell worker(s) to stop sending task-related events."""
    dispatcher = state.consumer.event_dispatcher
    if dispatcher is not None and not dispatcher.groups:
        # No group means all groups, but Celery's command treats it as none.
        dispatcher.groups.update({"worker", "task"})
    return _disable_events(state)


@control_command(
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue>",
)
def add_consumer(state: Any, queue: str, **_: Any) -> Any:
    """Tell worker(s) to consume from a configured task queue."""
    if not _is_configured(state, queue):
        return _unknown(state, queue)
    return _add_consumer(state, queue)


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(state: Any, queue: str, **_: Any) -> Any:
    """Tell worker(s) to stop consuming from task queue by name."""
    return (
        _cancel_consumer(state, queue) if _is_configured(state, queue) else _unknown(state, queue)
    )


@control_command()
def election(state: Any, **_: Any) -> Any:
    """Not supported: workers do not listen to each other."""
    return nok("elections are not supported: workers do not listen to each other")


def _has_processes(state: Any) -> bool:
    return hasattr(state.consumer.pool, "grow")


def _fixed_pool(state: Any) -> Any:
    pool = type(state.consumer.pool).__module__.rsplit(".", 1)[-1]
    return nok(f"this worker's pool ({pool}) has a fixed size; only prefork can change it")


def _is_configured(state: Any, queue: str) -> bool:
    return queue in state.app.amqp.queues and queue in _queues(state)


def _queues(state: Any) -> Any:
    return Options.read(state.app.conf.broker_transport_options).queues


def _unknown(state: Any, queue: str) -> Any:
    known = ", ".join(sorted(_queues(state)))
    return nok(f"no queue {queue[:80]!r} is configured; the configured queues are: {known}")
