"""Reporter: what SQS hears of a delivery, after what, and what it did not hear."""

from collections.abc import Callable, Sequence

import pytest

from sqs_broker.limits import LONGEST_VISIBILITY
from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import read_note
from sqs_broker.rules.facts import facts_of
from sqs_broker.rules.lease import Lease
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Postponed, Released, Retry
from sqs_broker.sqs.copies import MOST_REMEMBERED, Copies
from sqs_broker.sqs.errors import Errors
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.receiver import delivery_of
from sqs_broker.sqs.settlement import Reporter, Settlement
from sqs_broker.testing import Clock, FakeSqs, State
from tests.unit.conftest import HEADERS, VISIBILITY_TIMEOUT, MakeLease, Receive

DEAD = DeadLetter("no such task", "KeyError")
TRACE = {"trace": {"DataType": "String", "StringValue": "t-1"}}

Told = Callable[..., Errors]


@pytest.fixture
def reporter(options: Options, fake: FakeSqs, clock: Clock) -> Reporter:
    return Reporter(options, fake, clock)


@pytest.fixture
def tell(reporter: Reporter) -> Told:
    """Tells SQS the outcome of each of some leases."""

    def tell_them(leases: Lease | Sequence[Lease], *outcomes: Outcome) -> Errors:
        given = [leases] if isinstance(leases, Lease) else leases
        each = outcomes * (len(given) if len(outcomes) == 1 else 1)
        return reporter.tell([settlement(lease, o) for lease, o in zip(given, each, strict=True)])

    return tell_them


def settlement(lease: Lease, outcome: Outcome) -> Settlement:
    return Settlement(facts_of(lease.delivery, HEADERS), outcome, lease.expires_at)


def actions(fake: FakeSqs) -> list[str]:
    return [call.action for call in fake.calls]


def codes(errors: Errors) -> list[str]:
    return [error.code for error in errors if error is not None]


# What is told


@pytest.mark.parametrize(
    ("outcome", "action"),
    [
        (Done(), "DeleteMessageBatch"),
        (Retry(7, "KeyError"), "ChangeMessageVisibilityBatch"),
        (Released(), "ChangeMessageVisibilityBatch"),
    ],
)
def test_outcomes_are_told_ten_a_call(
    tell: Told, fake: FakeSqs, receive: Receive, outcome: Outcome, action: str
) -> None:
    leases = [receive() for _ in range(25)]
    assert codes(tell(leases, outcome)) == []
    assert [len(call["Entries"]) for call in fake.asked(action)] == [10, 10, 5]
    handles = [lease.delivery.receipt_handle for lease in leases]
    assert [entry["ReceiptHandle"] for entry in fake.entries(action)] == handles
    assert len(fake.calls) == 3


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [(Retry(7, "KeyError"), 7), (Retry(0, "KeyError"), 0), (Released(), 0), (Released(9), 9)],
)
def test_a_message_comes_back_after_its_delay(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive, outcome: Outcome, seconds: int
) -> None:
    tell(receive(), outcome)
    (message,) = fake.messages(options.queue("jobs").url)
    assert message.visible_in == seconds
    assert len(fake.calls) == 1


@pytest.mark.parametrize("age", [0, 30, 39])
def test_a_delay_and_the_age_of_its_lease_are_within_twelve_hours(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive, clock: Clock, age: int
) -> None:
    # SQS counts the 12 hours from the receive, which may have been when the call was sent, and
    # refuses what goes beyond them.
    fake.slow("ReceiveMessage", after=20)
    lease = receive()
    clock.advance(age)
    assert codes(tell(lease, Retry(LONGEST_VISIBILITY, "KeyError"))) == []
    (message,) = fake.messages(options.queue("jobs").url)
    longest = LONGEST_VISIBILITY - 20 - age
    assert longest - 5 <= message.visible_in <= longest


def test_each_queue_is_told_of_its_own(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive
) -> None:
    leases = [receive(queue=name) for name in ("mail", "jobs", "mail", "jobs")]
    assert codes(tell(leases, Done())) == []
    assert fake.counts == {"DeleteMessageBatch": 2}
    for name in ("jobs", "mail"):
        assert fake.messages(options.queue(name).url) == []


def test_deletes_and_changes_of_one_batch_are_told_apart(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive
) -> None:
    done, again = receive("done"), receive("again")
    assert codes(tell([done, again], Done(), Retry(1, "KeyError"))) == []
    assert actions(fake) == ["DeleteMessageBatch", "ChangeMessageVisibilityBatch"]
    assert fake.bodies(options.queue("jobs").url) == ["again"]


# Copies


def test_a_dead_letter_is_sent_before_its_message_is_deleted(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive
) -> None:
    tell(receive("original", attributes=TRACE), DEAD)
    assert actions(fake) == ["SendMessage", "DeleteMessageBatch"]
    (copy,) = fake.messages(options.queue("jobs").dead_letter_url or "")
    assert copy.body == "original"
    assert copy.attributes["trace"] == TRACE["trace"]
    assert (read_note(copy.attributes) or {})["reason"] == "no such task"
    assert fake.messages(options.queue("jobs").url) == []


def test_a_message_that_is_not_due_is_sent_on_before_it_is_deleted(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive
) -> None:
    tell(receive("original", attributes=TRACE), Postponed(900))
    assert actions(fake) == ["SendMessage", "DeleteMessageBatch"]
    (copy,) = fake.messages(options.queue("jobs").url)
    assert copy.body == "original"
    assert copy.attributes["trace"] == TRACE["trace"]
    assert (copy.state, copy.visible_in) == (State.DELAYED, 900)


@pytest.mark.parametrize("outcome", [DEAD, Postponed(900)], ids=["dead letter", "postponed"])
@pytest.mark.parametrize("group", ["shop-7", None])
def test_a_copy_keeps_the_group_of_its_message(
    tell: Told, fake: FakeSqs, receive: Receive, outcome: Outcome, group: str | None
) -> None:
    tell(receive("original", group=group), outcome)
    (call,) = fake.asked("SendMessage")
    assert call.get("MessageGroupId") == group
    # A standard queue has no deduplication.
    assert "MessageDeduplicationId" not in call


def test_a_message_that_is_sent_on_again_and_again_carries_when_it_was_first_sent(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive, clock: Clock
) -> None:
    lease, url = receive("original"), options.queue("jobs").url
    sent_at = lease.delivery.enqueued_at
    for _ in range(3):
        clock.advance(1)
        tell(lease, Postponed(900))
        clock.advance(900)
        (copy,) = Queue(url, fake).receive(1, 0)
        delivery = delivery_of(copy, "jobs", clock(), 0)
        lease = Lease(delivery, clock() + VISIBILITY_TIMEOUT)
        assert delivery.enqueued_at > sent_at
        assert delivery.first_sent == sent_at


@pytest.mark.parametrize("outcome", [DEAD, Postponed(5)])
@pytest.mark.parametrize(
    "error", [None, RuntimeError("nobody has foreseen this")], ids=["refused", "unforeseen"]
)
def test_a_message_is_not_deleted_before_its_copy_was_sent(
    tell: Told,
    fake: FakeSqs,
    receive: Receive,
    outcome: Outcome,
    error: Exception | None,
) -> None:
    fake.fail("SendMessage", "InternalError", error=error)
    lease = receive()
    errors = tell(lease, outcome)
    assert codes(errors) == ["RuntimeError" if error else "InternalError"]
    assert actions(fake) == ["SendMessage"]


@pytest.mark.parametrize("outcome", [DEAD, Postponed(5)])
def test_a_copy_is_sent_once_although_the_delete_fails(
    tell: Told, fake: FakeSqs, receive: Receive, outcome: Outcome
) -> None:
    fake.fail("DeleteMessageBatch")
    fake.fail("DeleteMessageBatch", entries=[0])
    lease = receive()
    assert codes(tell(lease, outcome)) == codes(tell(lease, outcome)) == ["InternalError"]
    assert codes(tell(lease, outcome)) == []
    assert fake.counts == {"SendMessage": 1, "DeleteMessageBatch": 3}


def test_of_copies_that_were_not_sent_nothing_is_remembered(
    reporter: Reporter, tell: Told, fake: FakeSqs, receive: Receive
) -> None:
    fake.deny("SendMessage")
    lease = receive()
    assert codes(tell(lease, DEAD)) == ["AccessDenied"]
    assert not reporter.copies.are_sent(lease.delivery)


def test_a_worker_remembers_the_last_copies_and_not_all_of_them(
    options: Options, fake: FakeSqs, make_lease: MakeLease
) -> None:
    copies = Copies(options, fake)
    deliveries = [make_lease().delivery for _ in range(MOST_REMEMBERED + 5)]
    for delivery in deliveries:
        assert copies.send_many([(facts_of(delivery, None), DEAD)]) == [None]
    assert [copies.are_sent(delivery) for delivery in deliveries] == (
        [False] * 5 + [True] * MOST_REMEMBERED
    )


def test_a_copy_that_cannot_be_sent_holds_no_other_message_up(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive
) -> None:
    fake.fail("SendMessage")
    dead, done = receive("dead"), receive("done")
    assert codes(tell([dead, done], DEAD, Done())) == ["InternalError"]
    assert fake.bodies(options.queue("jobs").url) == ["dead"]


MANY = "SendMessageBatch"


@pytest.mark.parametrize("outcome", [DEAD, Postponed(900)], ids=["dead letter", "postponed"])
def test_copies_are_sent_ten_in_one_call(
    tell: Told, fake: FakeSqs, receive: Receive, outcome: Outcome
) -> None:
    assert codes(tell([receive(f"body-{n}") for n in range(20)], outcome)) == []
    assert fake.counts == {MANY: 2, "DeleteMessageBatch": 2}


def test_of_copies_in_one_call_only_those_that_sqs_took_are_followed_by_a_delete(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive
) -> None:
    fake.fail(MANY, "InternalError", entries=[1])
    leases = [receive(f"body-{n}") for n in range(3)]

    assert [error and error.code for error in tell(leases, DEAD)] == [None, "InternalError", None]
    queue = options.queue("jobs")
    assert fake.bodies(queue.url) == ["body-1"]
    assert fake.bodies(queue.dead_letter_url or "") == ["body-0", "body-2"]
    # The next try sends the missing one alone.
    assert codes(tell(leases[1:2], DEAD)) == []
    assert fake.bodies(queue.dead_letter_url or "") == ["body-0", "body-2", "body-1"]


@pytest.mark.parametrize("code", ["InvalidParameterValue", "InvalidMessageContents"])
def test_if_sqs_refuses_a_call_each_of_its_copies_is_tried_alone(
    tell: Told, fake: FakeSqs, receive: Receive, code: str
) -> None:
    fake.fail(MANY, code, times=9)

    assert codes(tell([receive(f"body-{n}") for n in range(3)], DEAD)) == []
    assert fake.counts == {MANY: 1, "SendMessage": 3, "DeleteMessageBatch": 1}


def test_copies_that_are_too_large_for_one_call_are_sent_in_several(
    tell: Told, fake: FakeSqs, options: Options, receive: Receive
) -> None:
    large = "x" * (options.max_message_bytes // 3)
    assert codes(tell([receive(large) for _ in range(4)], Postponed(5))) == []
    assert fake.counts == {MANY: 2, "DeleteMessageBatch": 1}


def test_two_deliveries_of_one_message_have_one_copy(
    tell: Told, fake: FakeSqs, receive: Receive
) -> None:
    lease, other = receive("body"), receive("other")

    assert codes(tell([lease, lease, other], DEAD)) == []
    assert fake.counts[MANY] == 1
    assert len(fake.entries(MANY)) == 2


def test_more_copies_at_once_than_are_remembered_are_sent_once_each(
    tell: Told, fake: FakeSqs, receive: Receive
) -> None:
    leases = [receive(f"body-{n}") for n in range(MOST_REMEMBERED + 15)]
    assert codes(tell(leases, DEAD)) == []
    assert len(fake.entries(MANY)) == len(leases)


def test_a_copy_whose_lease_ended_while_others_were_sent_is_not_sent(
    tell: Told, fake: FakeSqs, receive: Receive
) -> None:
    leases = [receive(f"body-{n}") for n in range(20)]
    fake.slow(MANY, after=VISIBILITY_TIMEOUT + 1, times=1)
    # The first ten are sent; another worker may have them by now, so they are not deleted.
    assert codes(tell(leases, DEAD)) == ["LeaseOver"] * 20
    assert len(fake.entries(MANY)) == 10
    assert fake.counts == {MANY: 1}


# What fails


@pytest.mark.parametrize("of_the_call", [True, False])
@pytest.mark.parametrize(
    ("action", "outcome"),
    [("DeleteMessageBatch", Done()), ("ChangeMessageVisibilityBatch", Released())],
)
def test_what_fails_is_told_with_its_error_and_the_rest_is_done(
    tell: Told,
    fake: FakeSqs,
    receive: Receive,
    of_the_call: bool,
    action: str,
    outcome: Outcome,
) -> None:
    leases = [receive() for _ in range(12)]
    second = leases[1].delivery.receipt_handle
    fake.fail(action, "RequestThrottled", entries=None if of_the_call else [second])
    errors = tell(leases, outcome)
    failed = range(10) if of_the_call else [1]
    assert [n for n, error in enumerate(errors) if error] == list(failed)
    assert set(codes(errors)) == {"RequestThrottled"}


@pytest.mark.parametrize("outcome", [Done(), Retry(7, "KeyError"), Released(), DEAD, Postponed(5)])
def test_where_the_lease_is_over_sqs_is_told_nothing(
    tell: Told, fake: FakeSqs, receive: Receive, clock: Clock, outcome: Outcome
) -> None:
    # It waited here for too long; the message may be another worker's by now.
    lease = receive()
    clock.advance(VISIBILITY_TIMEOUT)
    assert codes(tell(lease, outcome)) == ["LeaseOver"]
    assert fake.calls == []


def test_where_the_lease_ends_while_the_copy_is_sent_the_message_is_not_deleted(
    tell: Told, fake: FakeSqs, receive: Receive
) -> None:
    fake.slow("SendMessage", after=VISIBILITY_TIMEOUT + 1)
    assert codes(tell(receive(), DEAD)) == ["LeaseOver"]
    assert actions(fake) == ["SendMessage"]


def test_where_a_lease_ends_while_others_are_told_its_own_is_not(
    tell: Told, fake: FakeSqs, receive: Receive
) -> None:
    leases = [receive() for _ in range(11)]
    fake.slow("DeleteMessageBatch", after=VISIBILITY_TIMEOUT)
    errors = tell(leases, Done())
    assert codes(errors) == ["LeaseOver"]
    assert errors[10]
    assert len(fake.calls) == 1


def test_nothing_to_tell_costs_no_call(reporter: Reporter, fake: FakeSqs) -> None:
    assert reporter.tell([]) == []
    assert fake.calls == []


# X-Ray


@pytest.mark.parametrize("outcome", [DEAD, Postponed(5)], ids=lambda outcome: outcome.name)
def test_a_copy_keeps_the_tracing_header_of_xray(
    reporter: Reporter, fake: FakeSqs, make_lease: MakeLease, outcome: Outcome
) -> None:
    reporter.tell([settlement(make_lease(trace_header="Root=1-a-b"), outcome)])
    (sent,) = fake.asked("SendMessage")
    header = {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-a-b"}}
    assert sent["MessageSystemAttributes"] == header


def test_a_copy_of_a_message_without_such_a_header_has_none(
    reporter: Reporter, fake: FakeSqs, make_lease: MakeLease
) -> None:
    reporter.tell([settlement(make_lease(), DEAD)])
    (sent,) = fake.asked("SendMessage")
    assert "MessageSystemAttributes" not in sent
