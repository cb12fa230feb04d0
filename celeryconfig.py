"""The Celery settings. Celery reads this file when it first needs a setting.

A comment gives the reason for each reliability setting. The values that a deployment may change
come from app/settings/.
"""

from kombu import Exchange, Queue

from app.loader import required_settings
from app.settings import is_function

_settings = required_settings()

# A function writes its own metric lines.
_has_metrics = _settings.worker_metrics_seconds > 0 and not is_function()
_metrics = ["app.metrics:observer"] if _has_metrics else []
_is_measured = _settings.worker_metrics_port is not None or _settings.worker_opentelemetry

# The queues. They are used by name, and none is created at run time.
broker_transport_options = {
    "region": _settings.aws_region,
    "endpoint_url": _settings.aws_endpoint_url,
    "credentials": _settings.credentials,
    "client": _settings.sqs_client,
    # The log of this application leaves the texts out itself, except for those of its own errors.
    "log_texts": True,
    "predefined_queues": {
        name: {"url": queue.url, "dead_letter_url": queue.dead_letter_url}
        for name, queue in _settings.queues.items()
    },
    "decode_json": "app.messages:decode_json",
    # The first keeps what became of the registrations that the HTTP API sent. The second does
    # nothing unless ECS_SCALE_IN_PROTECTION is set.
    "observers": ["app.outcomes.observer:observer", "app.scale_in:observer", *_metrics],
    # By name, and only if it is used: a producer needs none of what it loads.
    "metrics": {
        "port": _settings.worker_metrics_port,
        "address": _settings.worker_metrics_address,
        "login": _settings.worker_metrics_login,
        "opentelemetry": _settings.worker_opentelemetry,
        "class_of": "app.metrics:class_of" if _is_measured else None,
    },
    "tracing": "app.tracing:tracing" if _settings.tracing else None,
    "wait_time_seconds": _settings.sqs_wait_time,
    # An option of this broker: Celery's own stop has no deadline.
    "shutdown_timeout": _settings.worker_shutdown_timeout,
    "health_file": _settings.worker_health_file,
    # A worker that stands still holds its messages. Another one may do the work.
    "unhealthy_exit": _settings.worker_unhealthy_exit,
    "max_message_bytes": _settings.sqs_max_message_bytes,
    # Longer than the hard time limit, so that SQS does not deliver a running task's message to
    # another worker.
    "visibility_timeout": _settings.visibility_timeout,
    # max_attempts is reached first, and puts a reason on the dead letter. SQS's own limit only
    # catches what this project cannot count.
    "max_attempts": _settings.sqs_max_attempts,
    "max_receive_count": _settings.sqs_max_receive_count,
    "backoff_base": _settings.sqs_backoff_base,
    "backoff_max": _settings.sqs_backoff_max,
    # Workers of a new release may start after the producers that send its tasks.
    "unknown_task_grace": _settings.sqs_unknown_task_grace,
    "eta_max": _settings.sqs_eta_max,
    "most_in_flight": _settings.sqs_most_in_flight,
    # No task here has callbacks, so no message may have any, or call a task of Celery's own.
    "built_in_tasks": (),
    "most_callbacks": 0,
    # Events and remote control use MongoDB. A producer needs neither of them, so this is an import
    # path: only a process that needs them loads MongoDB's driver.
    "control": "app.mongo:control",
}

# Routing by task name: first the globs of SQS_QUEUES, then the default queue.
task_queues = [Queue(name, Exchange(""), routing_key=name) for name in _settings.queues]
task_default_queue = next(iter(_settings.queues))
task_default_exchange = ""
task_default_routing_key = task_default_queue
task_routes = [
    {glob: {"queue": name} for glob in queue.tasks}
    for name, queue in _settings.queues.items()
    if queue.tasks
]
# A wrong queue name raises at the caller. It does not create a queue that no worker reads.
task_create_missing_queues = False

# A message is deleted only after its task has ended, so a killed worker loses no message.
task_acks_late = True
# If the process of a task dies, the message is delivered again.
task_reject_on_worker_lost = True
# A retry of Celery's own would be a new message, whose delivery count starts at one.
task_retry_on_worker_lost = False
# A failed message is retried or dead-lettered with its reason, never deleted.
task_acks_on_failure = False
task_acks_on_timeout = False

# The soft limit raises in the task, then the hard limit kills it, well before its lease ends.
task_soft_time_limit = _settings.task_soft_time_limit
task_time_limit = _settings.task_time_limit

# No message is ever unpickled.
accept_content = ["json"]
task_serializer = "json"
event_serializer = "json"
# All producers and workers use UTC.
enable_utc = True
timezone = "UTC"

# No caller waits for a result. The user in MongoDB is the result.
task_ignore_result = True
# So there are no results to delete: beat would send Celery's own task for that each night.
result_expires = None
# Flower needs the worker's events. Events of producers would require MongoDB in each producer.
worker_send_task_events = True
task_send_sent_event = False
# Stock Celery has no remote control over SQS. Here it uses MongoDB (sqs_broker/control/).
worker_enable_remote_control = True

worker_concurrency = _settings.worker_concurrency
# A worker receives as many messages as its pool runs and is likely to start within a second, by
# measured time (sqs_broker/sqs/leases.py). 0: no further limit, which would slow down short tasks.
worker_prefetch_multiplier = 0
# A worker may start before its network is available.
broker_connection_retry_on_startup = True
