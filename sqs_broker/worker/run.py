"""One message, run here and now by Celery's own trace, without a worker around it."""

from celery.app import trace as tracing

from sqs_broker.rules.admission import Admitted, Arrival
from sqs_broker.rules.happened import happened
from sqs_broker.rules.outcomes import Happened, Succeeded

#: What stands in a request for the name of a worker.
HERE = "sqs_broker"


def run(arrival: Arrival, admitted: Admitted) -> Happened:
    """Run an admitted message in this thread, and say what the run was.

    It goes through what a run in a worker's process goes through: signals, brackets, links, and the
    task's own rules for its failures. Nobody enforces its time limits. Raises what ends a process:
    SystemExit, KeyboardInterrupt.
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
    # By the module: tracing libraries put their own in the place of Celery's function.
    trace = tracing.build_tracer(task.name, task, hostname=HERE, app=task.app)
    traced = trace(request["id"], args, kwargs, request)
    # Not by its result: a task may return any object, also an exception.
    return Succeeded() if traced.info is None else happened(traced.info.retval)
