"""One message, handled as a worker would, without a queue."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from sqs_broker.options import Options
from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.outcomes import Happened, Outcome, decide


@dataclass(frozen=True)
class Handled:
    """The result of handling one message."""

    outcome: Outcome
    """Done, Retry, DeadLetter, Postponed or Released (sqs_broker/rules/outcomes.py)."""
    happened: Happened
    """The result of the run, or the reason why the task did not run."""
    message: Facts


def handle(celery_app: Any, body: str | Mapping[str, Any], *, deliveries: int = 1) -> Handled:
    """Handle one message as a worker of this app would: decode it, run its task, and decide its
    outcome. Runs in this thread. Except for what the task itself does, it sends and stores nothing.

    `body` is the text of an SQS message, or the object of a plain JSON message. `deliveries` is how
    often SQS has delivered the message, including this time; each earlier run has failed. If the
    task fails in its last attempt, the outcome is DeadLetter.
    """
    # Imported here, because these need Celery and FakeSqs does not.
    from sqs_broker.rules.admission import Admitted, admit, arrive
    from sqs_broker.worker.run import run

    options = Options.read(celery_app.conf.broker_transport_options)
    delivery = Delivery(
        tag="1",
        queue=next(iter(options.queues)),
        message_id="sqs-1",
        receipt_handle="receipt-1",
        body=body if isinstance(body, str) else json.dumps(body),
        attributes={},
        count=deliveries,
        enqueued_at=datetime.now(UTC),
        received_at=monotonic(),
    )
    arrival = arrive(delivery, options.decode_json, options.eta_max)
    policy, happened = options.policy, arrival.ended
    if happened is None:
        admitted = admit(arrival, celery_app.tasks, options.canvas)
        if isinstance(admitted, Admitted):
            policy, happened = admitted.task.policy, run(arrival, admitted)
        else:
            happened = admitted
    outcome = decide(happened, delivery, policy)
    return Handled(outcome, happened, facts_of(delivery, arrival.headers))
