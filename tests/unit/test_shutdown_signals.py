"""Shutdown: what each signal does, without a worker around it."""

import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals
from celery.apps.worker import install_worker_term_handler, install_worker_term_hard_handler
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state
from kombu.asynchronous import Hub

from devstack.waiting import wait_until
from sqs_broker.errors import NoThread
from sqs_broker.machine.inbox import Inbox
from sqs_broker.worker.shutdown import Shutdown
from tests.unit.conftest import Machine

#: Seconds that nothing here comes near to.
DEADLINE = 30


class Deliveries:
    """Has one delivery in flight, and notes what is asked of it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.is_empty = False
        self.wake: Any = None
        self.stopped = threading.Event()

    def on_empty(self, callback: Any) -> None:
        self.wake = callback

    def stop_receiving(self) -> None:
        self.told.append("stop receiving")

    def release(self, *, running: bool) -> int:
        self.told.append("release all" if running else "release what waits")
        self.stopped.set()
        return 1

    def give_up_polls(self) -> None:
        self.told.append("give up polls")

    def await_polls(self) -> None:
        self.told.append("await polls")

    def flush(self, timeout: float) -> bool:
        self.told.append("flush")
        return True

    def end(self) -> None:
        """The last delivery ends."""
        self.is_empty = True
        self.wake()


class Consumer:
    """The parts of a worker that a stop needs. Its pool is one of threads."""

    def __init__(self, hub: Hub, inbox: Inbox, shutdown_timeout: float) -> None:
        self.hub = hub
        self.deliveries = Deliveries()
        channel = SimpleNamespace(deliveries=self.deliveries)
        self.task_consumer = SimpleNamespace(channel=channel)
        self.pool = SimpleNamespace(uses_semaphore=False)
        # No program of its own, so that the process of the tests is not left.
        self.controller = SimpleNamespace(exitcode=None, semaphore=None)
        options = SimpleNamespace(shutdown_timeout=shutdown_timeout)
        self.connection = SimpleNamespace(transport=SimpleNamespace(inbox=inbox, options=options))


@pytest.fixture
def _signals_of_before() -> Iterator[None]:
    """What a worker would change in this process, as it was before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    state.should_stop = state.should_terminate = None


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture
def consumer(hub: Hub, _signals_of_before: None) -> Iterator[Consumer]:
    inbox = Inbox()
    made = Consumer(hub, inbox, shutdown_timeout=DEADLINE)
    hub.add_reader(inbox.fileno(), inbox.take_all)
    yield made
    inbox.close()


@pytest.fixture
def one_stop() -> float:
    """Seconds in which further SIGTERMs belong to the first signal: here each one is another."""
    return 0.0


@pytest.fixture
def shutdown(consumer: Consumer, one_stop: float) -> Iterator[Shutdown]:
    made = Shutdown(consumer, one_stop=one_stop)
    made.listen()
    yield made
    made.finish()


def at_last(consumer: Consumer, action: Any) -> None:
    """Do this, from another thread, once the stop has begun."""

    def act() -> None:
        assert consumer.deliveries.stopped.wait(DEADLINE)
        action()

    threading.Thread(target=act).start()


def await_the_end_of_its_thread() -> None:
    """All that a stop does on its own thread is done."""
    wait_until(
        lambda: all(thread.name != "sqs-shutdown" for thread in threading.enumerate()),
        DEADLINE,
        "the end of the stop's thread",
    )


def signalled(how: str = "Warm") -> None:
    """A first signal, as Celery's handler says that it came."""
    signals.worker_shutting_down.send(sender=None, sig="SIGTERM", how=how, exitcode=0)


def test_a_stop_receives_no_more_then_releases_what_waits_then_awaits_what_runs(
    shutdown: Shutdown, consumer: Consumer
) -> None:
    at_last(consumer, consumer.deliveries.end)
    shutdown.drain()
    assert consumer.deliveries.is_empty
    assert consumer.deliveries.told == ["stop receiving", "release what waits"]


def test_a_signal_of_celery_begins_the_stop_at_once_and_leaves_with_status_0(
    shutdown: Shutdown, consumer: Consumer
) -> None:
    # Not only when the loop comes by: in the solo pool a task keeps it.
    consumer.controller.exitcode = 1  # As Celery has it after Ctrl+C.
    signals.worker_shutting_down.send(sender=None, sig="SIGINT", how="Warm", exitcode=1)
    assert consumer.deliveries.stopped.wait(DEADLINE)
    at_last(consumer, consumer.deliveries.end)
    shutdown.drain()
    assert consumer.controller.exitcode == 0


@pytest.mark.parametrize("one_stop", [2 * DEADLINE])
def test_sigterms_that_come_together_are_one_stop(shutdown: Shutdown, consumer: Consumer) -> None:
    signalled()
    signalled()  # While Celery's handler of the first one still ran.
    assert consumer.deliveries.stopped.wait(DEADLINE)
    signal.raise_signal(signal.SIGTERM)
    at_last(consumer, consumer.deliveries.end)
    shutdown.drain()
    assert consumer.deliveries.told == ["stop receiving", "release what waits"]


@pytest.mark.parametrize("one_stop", [2 * DEADLINE])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_of_another_kind_is_heard_at_once(
    shutdown: Shutdown, consumer: Consumer, number: signal.Signals
) -> None:
    signalled()
    assert consumer.deliveries.stopped.wait(DEADLINE)
    signal.raise_signal(number)
    await_the_end_of_its_thread()
    assert "release all" in consumer.deliveries.told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_any_second_signal_releases_all_and_tells_sqs(
    shutdown: Shutdown, consumer: Consumer, number: signal.Signals
) -> None:
    signalled()
    assert consumer.deliveries.stopped.wait(DEADLINE)
    signal.raise_signal(number)
    await_the_end_of_its_thread()
    assert consumer.deliveries.told == [
        "stop receiving",
        "release what waits",
        "give up polls",
        "flush",
        "release all",
        "flush",
        # An open poll takes what is released: what it brings is released in turn.
        "await polls",
        "flush",
    ]


def test_a_deadline_is_as_a_second_signal(consumer: Consumer) -> None:
    consumer.connection.transport.options.shutdown_timeout = 0.01
    made = Shutdown(consumer)
    made.listen()
    signalled()
    await_the_end_of_its_thread()
    assert "release all" in consumer.deliveries.told
    made.finish()


def test_a_loop_that_does_not_end_its_processes_ends_with_the_process(consumer: Consumer) -> None:
    consumer.pool.uses_semaphore = True
    made = Shutdown(consumer, last_resort=0.01)
    made.listen()
    signalled("Cold")
    await_the_end_of_its_thread()
    assert "release all" in consumer.deliveries.told
    made.finish()


def test_a_worker_that_gives_up_releases_all_and_leaves_with_the_status_that_was_given(
    shutdown: Shutdown, consumer: Consumer
) -> None:
    shutdown.give_up(75)
    await_the_end_of_its_thread()
    assert "release all" in consumer.deliveries.told
    # Celery's loop ends with it.
    assert state.should_stop == 75


def test_a_worker_that_already_stops_does_not_give_up(
    shutdown: Shutdown, consumer: Consumer
) -> None:
    signalled()
    assert consumer.deliveries.stopped.wait(DEADLINE)
    shutdown.give_up(75)
    shutdown.finish()
    await_the_end_of_its_thread()
    assert "release all" not in consumer.deliveries.told
    assert state.should_stop is None


def test_a_worker_that_was_never_ready_gives_up_too(consumer: Consumer) -> None:
    Shutdown(consumer).give_up(75)
    assert "release all" in consumer.deliveries.told


def test_a_worker_that_stops_in_time_is_not_forced(shutdown: Shutdown, consumer: Consumer) -> None:
    signalled()
    shutdown.finish()
    await_the_end_of_its_thread()
    assert consumer.deliveries.told == ["stop receiving", "release what waits"]


def test_a_fault_at_its_begin_does_not_leave_a_stop_without_end(
    shutdown: Shutdown, consumer: Consumer
) -> None:
    consumer.deliveries.stop_receiving = None
    consumer.deliveries.is_empty = True
    shutdown.drain()
    signalled()
    await_the_end_of_its_thread()
    assert "release all" in consumer.deliveries.told


def test_a_fault_of_the_loop_and_a_further_shutdown_do_not_end_the_draining(
    shutdown: Shutdown, consumer: Consumer
) -> None:
    def ask_again() -> None:
        consumer.hub.call_soon(fail)
        raise WorkerShutdown(0)

    def fail() -> None:
        consumer.hub.call_soon(end)
        raise ZeroDivisionError

    def end() -> None:
        assert consumer.deliveries.stopped.wait(DEADLINE)
        consumer.deliveries.end()

    consumer.hub.call_soon(ask_again)
    shutdown.drain()
    assert consumer.deliveries.is_empty


def test_an_error_that_terminates_a_worker_makes_its_stop_a_forced_one(
    shutdown: Shutdown, consumer: Consumer
) -> None:
    def terminate() -> None:
        consumer.hub.call_soon(end)
        raise WorkerTerminate(1)

    def end() -> None:
        await_the_end_of_its_thread()
        consumer.deliveries.end()

    consumer.hub.call_soon(terminate)
    shutdown.drain()
    assert "release all" in consumer.deliveries.told


def test_a_loop_that_an_error_has_emptied_is_not_turned(
    shutdown: Shutdown, consumer: Consumer
) -> None:
    consumer.hub.reset()
    shutdown.drain()
    assert consumer.deliveries.told == []


def test_a_worker_that_never_was_ready_has_nothing_to_drain(consumer: Consumer) -> None:
    Shutdown(consumer).drain()
    assert consumer.deliveries.told == []


def test_a_stop_without_its_thread_ends_at_once_and_the_thread_is_tried_again(
    consumer: Consumer, machine: Machine
) -> None:
    # Nobody would bound it, and Celery's own stop has still to come.
    machine.has_no_room_for("sqs-shutdown")
    made = Shutdown(consumer)
    with pytest.raises(NoThread):
        made.listen()
    made.drain()
    assert consumer.deliveries.told == []
    machine.has_room()
    made.listen()
    at_last(consumer, consumer.deliveries.end)
    made.drain()
    made.finish()
    assert consumer.deliveries.told == ["stop receiving", "release what waits"]


# What Celery does


@pytest.mark.usefixtures("_signals_of_before")
def test_celerys_cold_shutdown_is_found_by_its_name_and_replaced(consumer: Consumer) -> None:
    install_worker_term_hard_handler(None)
    made = Shutdown(consumer)
    made.listen()
    signal.raise_signal(signal.SIGQUIT)
    await_the_end_of_its_thread()
    assert "release all" in consumer.deliveries.told
    assert state.should_stop == 0


@pytest.mark.usefixtures("_signals_of_before")
def test_celerys_handler_of_sigterm_says_that_it_is_warm(capfd: Any) -> None:
    said: list[str] = []

    def note(how: str, **_: Any) -> None:
        said.append(how)

    signals.worker_shutting_down.connect(note)
    install_worker_term_handler(SimpleNamespace(hostname="w@h"))
    signal.raise_signal(signal.SIGTERM)
    assert said == ["Warm"]
