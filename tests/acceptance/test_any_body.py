"""Hundreds of bodies that nobody would write, to one real worker in one go: each ends, and the
worker lives.
"""

import re

import pytest
from hypothesis import Phase, given, settings

from tests.acceptance.worker import Service
from tests.bodies import bodies
from tests.services import wait_until

MANY = 300

#: Seconds for all of them; some are tried three times.
PATIENCE = 150

#: What SQS takes: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
SENDABLE = re.compile("[\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")

#: The ends of a message; one that is due in a far year is sent on, and on.
ENDS = ("message.done", "message.dead-letter", "message.postponed")


def generated() -> list[str]:
    """The same bodies each time."""
    found: dict[str, None] = {}

    @settings(derandomize=True, database=None, max_examples=MANY, phases=[Phase.generate])
    @given(body=bodies)
    def collect(body: str) -> None:
        if SENDABLE.fullmatch(body):
            found[body] = None

    collect()
    return list(found)


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 60)
def test_any_body_ends_as_done_or_dead_letter_with_a_reason_and_the_worker_lives(
    service: Service,
) -> None:
    sent = {service.send(body): body for body in generated()}
    assert len(sent) > MANY / 2

    def ends() -> dict[str, dict[str, str]]:
        lines = service.worker.log_lines()
        return {line["sqs_message_id"]: line for line in lines if line["event"] in ENDS}

    def missing() -> set[str]:
        return set(sent) - set(ends())

    try:
        wait_until(lambda: not missing(), PATIENCE, "the end of every message")
    finally:
        assert [sent[id_] for id_ in missing()] == []
    assert service.worker.is_running
    assert "Traceback" not in service.worker.log_text()
    reasons = [line["reason"] for line in ends().values() if line["event"] == ENDS[1]]
    assert len(reasons) > MANY / 4
    assert all(reasons)
    # It still does what can be done.
    service.send('{"id": "last", "action": "increment", "data": {"input": 1}}')
    wait_until(
        lambda: any(line.get("message_id") == "last" for line in service.worker.log_lines(ENDS[0])),
        PATIENCE,
        "a message after all of it",
    )
