"""From sent to stored, while messages come at a steady rate."""

from contextlib import closing

from bench import database
from bench.candidates import Candidate
from bench.figures import delays, percentile
from bench.lab import Lab
from bench.results import Latency

#: Messages that warm the worker up.
WARM_UP = 40
#: Seconds for what is still in the queue when the flow ends.
REST = 10.0


def measure(
    lab: Lab, candidate: Candidate, delay_ms: float, load: float, rate: float, seconds: float
) -> Latency:
    """Send `rate` registrations a second, which is `load` of what the candidate can carry.

    What is not stored 10 s after the last was sent counts as not stored.
    """
    with (
        lab.stage(candidate, "register", delay_ms, size=WARM_UP) as stage,
        closing(lab.sender(stage.place.queues.url)) as sender,
    ):
        stage.first_delete()
        stage.wait_until_deleted(WARM_UP, REST)
        body = candidate.body("register", stage.place.queue)
        sent = sender.flow(body, rate, seconds)
        stage.wait_until_deleted(WARM_UP + len(sent), REST)
        taken = delays(sent, database.stored_at(lab.mongo, stage.database))
    return Latency(
        candidate.name, delay_ms, load, rate, len(sent), len(taken),
        percentile(taken, 0.5), percentile(taken, 0.99),
    )  # fmt: skip
