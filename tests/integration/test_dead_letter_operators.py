"""Flower and a command redrive the same dead letters at the same time, with a real SQS server."""

import json
from collections import Counter

import pytest

from app.messages import decode_json
from sqs_broker.options import Options
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.tools.commands.dead_letter_queues import Filter
from sqs_broker.tools.flower.letters import NOT_FOUND, Letters
from tests.integration.conftest import Run, transport_options
from tests.integration.test_dlq_commands import body, bury, next_second, received
from tests.services import Queues, wait_until

DEADLINE = 30
MESSAGES = 60


@pytest.fixture
def letters(queues: Queues) -> Letters:
    options = Options.read(transport_options(queues) | {"decode_json": decode_json})
    return Letters(options, driver_for(options))


def end(letters: Letters) -> Counter[str]:
    """What the job did."""
    job = letters.job
    assert job is not None
    wait_until(lambda: job.is_over, DEADLINE, "the end of the job")
    assert job.error is None
    return job.results


def test_each_message_is_sent_once_and_none_is_left(
    queues: Queues, run: Run, letters: Letters
) -> None:
    for number in range(MESSAGES):
        bury(queues, body(f"m-{number}"))
    next_second(queues)
    assert letters.read(Filter(), "kim")
    end(letters)
    assert letters.redrive(None, "kim", is_dry=False)
    ran = run(queues, "dlq", "redrive", "--yes", "--unrecorded", "--json")
    results = end(letters)
    by_command = [line for line in ran.stdout.splitlines() if json.loads(line)["became"]]
    assert results["redriven"] + len(by_command) == MESSAGES
    assert results["redriven"] + results[NOT_FOUND] == MESSAGES
    sent = Counter(json.loads(message["Body"])["id"] for message in received(queues))
    assert sent == Counter(f"m-{number}" for number in range(MESSAGES))
    assert queues.dead_letters() == []
