"""What boto3's driver does as no other one: it leaves calls, and asks other services."""

from collections.abc import Iterator

import pytest

from sqs_broker.machine.calls import MOST_LEFT
from sqs_broker.options import BOTO3
from sqs_broker.sqs.boto import Boto, ask, invoke, quick_client
from sqs_broker.sqs.errors import HANGING, OVERDUE, SqsError, Unreached
from sqs_broker.sqs.queue import Queue
from tests.unit import scripted
from tests.unit.scripted import Script


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted.running() as script:
        yield script


def test_what_the_library_lets_through_of_others_is_left_as_it_is() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ZeroDivisionError):
        invoke(fail, error=ZeroDivisionError())
    with pytest.raises(Unreached, match="reset"):
        invoke(fail, error=ConnectionResetError("reset"))


def test_calls_that_hang_are_bounded_in_number(script: Script) -> None:
    driver = Boto(script.options(client=BOTO3), tries=1, seconds=0.01)
    queue = Queue(script.queue_url, driver)
    codes = []
    for _ in range(MOST_LEFT + 1):
        script.answer('{"Attributes": {}}', drip=1)
        with pytest.raises(SqsError) as raised:
            queue.attributes("All")
        codes.append(raised.value.code)
    assert codes == [*[OVERDUE] * MOST_LEFT, HANGING]


def test_other_services_have_a_deadline_too(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", script.url)
    sts = quick_client(script.options(), "sts")
    script.answer("<x></x>", drip=1)
    with pytest.raises(Unreached, match=OVERDUE):
        ask(sts.get_caller_identity, seconds=0.2)
