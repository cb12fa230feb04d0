"""The Celery settings and nothing else. Celery reads this file when it first needs a setting.

Why each reliability setting must be as it is, stands beside it; what a deployment may change comes
from app/settings.py.
"""

from kombu import Exchange, Queue

from app.mongo import control_options
from app.settings import get_settings

_settings = get_settings().require_queue()

# Where messages live. Queues are known by name; none is created at run time.
broker_transport_options = {
    "region": _settings.aws_region,
    "endpoint_url": _settings.aws_endpoint_url,
    "credentials": _settings.credentials,
    "predefined_queues": {
        name: {"url": queue.url, "dead_letter_url": queue.dead_letter_url}
        for name, queue in _settings.queues.items()
    },
    "decode_json": "app.messages:decode_json",
    "wait_time_seconds": _settings.sqs_wait_time,
    # Ours, since Celery's stop has no deadline.
    "shutdown_timeout": _settings.worker_shutdown_timeout,
    "health_file": _settings.worker_health_file,
    "max_message_bytes": _settings.sqs_max_message_bytes,
    # The hard time limit and a margin: a running task's message is never handed to another worker.
    "visibility_timeout": _settings.visibility_timeout,
    # Ours comes first, with a reason on the dead letter; SQS's own limit is the backstop.
    "max_attempts": _settings.sqs_max_attempts,
    "max_receive_count": _settings.sqs_max_receive_count,
    "backoff_base": _settings.sqs_backoff_base,
    "backoff_max": _settings.sqs_backoff_max,
    # Events and remote control live in MongoDB. A producer needs neither, and so no MongoDB.
    "control": control_options(_settings),
}

# Routing by task name: globs of SQS_QUEUES first, the default queue for all else.
task_queues = [Queue(name, Exchange(""), routing_key=name) for name in _settings.queues]
task_default_queue = next(iter(_settings.queues))
task_default_exchange = ""
task_default_routing_key = task_default_queue
task_routes = [
    {glob: {"queue": name} for glob in queue.tasks}
    for name, queue in _settings.queues.items()
    if queue.tasks
]
# A misspelt queue is an error at the caller, not a queue that nobody reads.
task_create_missing_queues = False

# A message is deleted when its task is done, so a killed worker loses nothing.
task_acks_late = True
# A task whose process died did not run: its message is delivered again.
task_reject_on_worker_lost = True
# That would send a new message, whose delivery count starts again.
task_retry_on_worker_lost = False
# A failure is retried or dead-lettered with its reason, never acknowledged away.
task_acks_on_failure = False
task_acks_on_timeout = False

# A task is told to stop, then killed, well before its lease ends.
task_soft_time_limit = _settings.task_soft_time_limit
task_time_limit = _settings.task_time_limit

# Nothing from the wire is ever unpickled.
accept_content = ["json"]
task_serializer = "json"
event_serializer = "json"
# One clock for every producer and worker.
enable_utc = True
timezone = "UTC"

# Nobody waits for a result; the user in MongoDB is the result.
task_ignore_result = True
# Flower lives on the worker's events; a producer's would need the control plane of every producer.
worker_send_task_events = True
task_send_sent_event = False
# Over SQS it does not exist in stock Celery; here it goes through MongoDB (sqs_broker/control/).
worker_enable_remote_control = True

worker_concurrency = _settings.worker_concurrency
# The window is the pool's size and what the pool is likely to start within a second
# (sqs_broker/sqs/leases.py): otherwise messages would age here that another worker could run.
worker_prefetch_multiplier = 1
# A worker that starts before its network does is patient.
broker_connection_retry_on_startup = True
