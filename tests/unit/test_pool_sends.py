"""What processes of a prefork pool send is counted in the main process."""

import pytest

from sqs_broker.observers import instruments as of
from sqs_broker.observers.figures import Figures
from sqs_broker.observers.metering import Metering
from sqs_broker.observers.pool_sends import PoolSends
from tests.unit.counted import counted
from tests.unit.test_shared_sums import in_a_fork

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def sends() -> PoolSends:
    opened = PoolSends()
    opened.open(("jobs", "mails"))
    return opened


def process(sends: PoolSends, queue: str, count: int) -> None:
    """A process of the pool sends messages."""

    def send() -> None:
        sends.join(0)
        assert sends.is_joined
        metering = Metering([sends])
        metering.published(queue, count)
        metering.polled(queue, 10, 1)
        metering.called("ReceiveMessage", queue, 0.1, None)

    in_a_fork(send)


def test_each_message_is_passed_on_once(sends: PoolSends) -> None:
    figures = Figures()
    figures.add(of.SENT, ("jobs",))
    process(sends, "jobs", 3)
    for _ in range(2):
        sends.pass_on(figures)
    process(sends, "jobs", 1)
    process(sends, "mails", 2)
    sends.pass_on(figures)
    assert counted(figures.samples()) == {(of.SENT, ("jobs",)): 5, (of.SENT, ("mails",)): 2}


def test_a_pool_that_is_made_anew_goes_on(sends: PoolSends) -> None:
    figures = Figures()
    process(sends, "jobs", 3)
    sends.open(("jobs", "mails"))
    process(sends, "jobs", 1)
    sends.pass_on(figures)
    assert counted(figures.samples()) == {(of.SENT, ("jobs",)): 4}


def test_a_process_whose_memory_is_not_shared_is_none_of_the_pool() -> None:
    sends, figures = PoolSends(), Figures()
    sends.join(0)
    assert not sends.is_joined
    sends.add(of.SENT, ("jobs",))
    sends.pass_on(figures)
    assert not figures.samples()


def test_the_main_process_is_none_of_the_pool(sends: PoolSends) -> None:
    process(sends, "jobs", 1)
    assert not sends.is_joined
