"""Many messages, ten a call, through a counting proxy."""

import json
import subprocess
import sys
from typing import Any

from tests.faults import proxy
from tests.services import Queues

SCRIPT = """
import json
from sqs_broker.sqs.publisher import publish_many
from app.tasks import register_user

def messages():
    for number in range(95):
        yield {"stock_id": "s1", "user_id": f"u{number}", "user_info": {"nickname": "kim"}}
    yield {"stock_id": "s1"}
    yield {"stock_id": "s1", "user_id": "u96", "user_info": {"nickname": "x" * 10_000}}

published = publish_many(register_user, messages())
print(json.dumps([published.sent, published.failed]))
"""


def publish(environment: dict[str, str]) -> Any:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def test_many_messages_are_a_tenth_of_a_call_each_and_bad_ones_are_told(
    queues: Queues, environment: dict[str, str]
) -> None:
    with proxy.running(queues.endpoint_url) as (faults, url):
        sent, failed = publish(environment | {"AWS_ENDPOINT_URL": url})

    assert sent == 95
    assert failed.keys() == {"95", "96"}
    assert "user_id" in failed["95"]
    assert "nickname" in failed["96"]
    assert dict(faults.calls) == {"SendMessageBatch": 10}
    assert queues.counts()[0] == 95
