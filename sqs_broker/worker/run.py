"""Runs one message in this thread through Celery's own trace, without a worker."""

from celery.app import trace as tracing

from sqs_broker.rules.admission import Admitted, Arrival
from sqs_broker.rules.happened import happened
from sqs_broker.rules.outcomes import Happened, Succeeded

#: The value of a request's `hostname`, in place of a worker's name.
HERE = "sqs_broker"


def run(arrival: Arrival, admitted: Admitted) -> Happened:
    """Run an admitted message in this thread, and return what happened.

    Signals, brackets, links and the task's own rules for failures work as in a worker. Time limits
    are not enforced. Raises SystemExit and KeyboardInterrupt if the task does.
    """
    task = admitted.task
    args, kwargs, embed = arrival.payload
    request = {
        **(arrival.headers or {}),
        **admitted.headers,
        **(embed or {}),
        "delivery_info": arrival.content["properties"]["delivery_info"],
        "hostname": HERE,
    }
    # Called through the module, because tracing libraries replace the function there.
    trace = tracing.build_tracer(task.name, task, hostname=HERE, app=task.app)
    traced = trace(request["id"], args, kwargs, request)
    # `info` is checked, not the result, because a task may also return an exception.
    return Succeeded() if traced.info is None else happened(traced.info.retval)
