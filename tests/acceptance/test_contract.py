"""`make contract`: the acceptance tests on a queue that is not made for them, far away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import proxy
from tests.services import Queues

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

#: Seconds that a call to a queue on another continent takes longer.
FAR = 0.15

#: One sends by hand and uses a command; the other one has a worker.
SOME = (
    "test_a_message_that_was_listed_can_be_redriven "
    "or test_what_a_registration_leaves_out_has_its_default"
)


def contract(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the target of the Makefile runs, with some variables more."""
    (line,) = (one for one in (ROOT / "Makefile").read_text().splitlines() if "--contract" in one)
    command = line.split()[1:]
    command.remove("$(ARGS)")
    return subprocess.run(
        [sys.executable, *command, "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]} | environment,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_it_ends_although_the_queue_is_far_away_and_has_messages(queues: Queues) -> None:
    for url in (queues.url, queues.dead_letter_url):
        queues.client.send_message(QueueUrl=url, MessageBody="left by somebody")
    with proxy.running(queues.endpoint_url) as (way, url):
        way.distance = FAR
        ran = contract(
            "-q",
            "-k",
            SOME,
            AWS_REGION=queues.region,
            AWS_ENDPOINT_URL=url,
            AWS_SQS_QUEUE_URL=queues.url,
            AWS_SQS_DLQ_URL=queues.dead_letter_url,
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
        )
    assert ran.returncode == 0, ran.stdout
    assert "2 passed" in ran.stdout


def test_it_runs_all_tests_that_need_no_fault() -> None:
    ran = contract(
        "--collect-only",
        "-q",
        AWS_REGION="us-east-1",
        AWS_SQS_QUEUE_URL="https://sqs.test/1/jobs",
        AWS_SQS_DLQ_URL="https://sqs.test/1/jobs-dlq",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
    )
    names = {line.partition("[")[0] for line in ran.stdout.splitlines() if "::" in line}
    assert len(names) >= 41, ran.stdout


def test_without_its_variables_it_names_them() -> None:
    ran = contract("-q")
    assert ran.returncode == 2
    assert (
        "make contract needs AWS_REGION, AWS_SQS_QUEUE_URL, AWS_SQS_DLQ_URL"
        in ran.stderr + ran.stdout
    )
