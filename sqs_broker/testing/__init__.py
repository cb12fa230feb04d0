"""For tests of this broker and of projects that use it: an SQS in memory, a store of failed runs in
memory, and a function that handles one message as a worker would.

    from sqs_broker.testing import handle

    handled = handle(app, {"id": "1", "action": "registerUser", "data": {...}})
    assert handled.outcome == Done()

    from sqs_broker.testing import Clock, FakeSqs

    fake = FakeSqs(Clock())
    jobs = fake.create_queue("jobs", dead_letters="jobs-dlq", max_receive_count=3)
    app.conf.broker_transport_options = fake.transport_options()
"""

from sqs_broker.testing.attempts import MemoryAttempts
from sqs_broker.testing.clock import Clock
from sqs_broker.testing.fake_sqs import Call, FakeSqs, Message, State
from sqs_broker.testing.handling import Handled, handle

__all__ = ["Call", "Clock", "FakeSqs", "Handled", "MemoryAttempts", "Message", "State", "handle"]
