"""docs/migrate.md, typed: from stock Celery to this broker, and back, with messages on the way."""

from pathlib import Path

import pytest

from tests.acceptance.typed import Typed
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

#: One process that sends with both, one message each.
BOTH = """
import sys
import after, before
for module in (before, after):
    module.add.apply_async((1, 2), task_id=f"{module.__name__}-{sys.argv[1]}")
"""


@pytest.mark.parametrize("queues", [{"visibility_timeout": 60}], indirect=True)
def test_both_read_what_either_has_sent_in_the_change_and_on_the_way_back(
    tmp_path: Path, queues: Queues
) -> None:
    typed = Typed(tmp_path, queues)
    for module in ("before", "after"):
        # A worker ends with its long poll.
        poll = 'app.conf.broker_transport_options["wait_time_seconds"] = 1'
        typed.write(f"{module}.py", poll)

    for time, module in (("there", "after"), ("back", "before")):
        sent = typed.run("-c", BOTH, time)
        assert sent.returncode == 0, sent.stderr
        with typed.worker(module, "--pool", "solo") as log:
            wait_until(lambda: log.read_text().count("succeeded") == 2, 30, f"both: {log}")
            for sender in ("before", "after"):
                assert f"shop.add[{sender}-{time}] succeeded" in log.read_text()
        wait_until(queues.is_empty, 30, "an empty queue")
    assert queues.dead_letters() == []


@pytest.mark.parametrize("queues", [{"visibility_timeout": 60}], indirect=True)
def test_the_doctor_finds_no_fault_in_what_the_page_shows(tmp_path: Path, queues: Queues) -> None:
    typed = Typed(tmp_path, queues)
    # The queues of the local server are smaller than those of Amazon.
    typed.write("after.py", 'app.conf.broker_transport_options["max_message_bytes"] = 262_144')
    examined = typed.run("-m", "celery", "-A", "after", "sqs", "doctor")
    assert examined.returncode == 0, examined.stdout


def test_the_settings_of_the_old_transport_are_refused_by_name(
    tmp_path: Path, queues: Queues
) -> None:
    typed = Typed(tmp_path, queues)
    typed.write("before.py", "from sqs_broker import install", "install(app)")
    started = typed.run("-m", "celery", "-A", "before", "worker")
    assert started.returncode == 1
    assert "'is_secure' is not supported. The scheme of `endpoint_url` decides." in started.stderr
