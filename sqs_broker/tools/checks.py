"""Compares the attributes of a queue with the options: pure functions that return findings.

The attributes are those of GetQueueAttributes:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqs_broker.limits import LONGEST_RETENTION, MOST_IN_FLIGHT
from sqs_broker.options import Options, QueueAddress
from sqs_broker.rules.due import CLOCK_TOLERANCE
from sqs_broker.rules.policy import SPARE_DELIVERIES
from sqs_broker.rules.routes import circle, in_words
from sqs_broker.sqs.requests import name_of

#: If the visibility timeout is at least this many long polls, a message never needs its lease
#: extended on arrival.
POLLS_PER_LEASE = 3

#: The text for an attribute that the answer does not have.
NOT_GIVEN = "the server does not return it"

Attributes = Mapping[str, str]


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    """Somebody wants it so, and should know it."""
    FAULT = "fault"
    UNKNOWN = "unknown"
    """It could not be checked. No fault is known."""


@dataclass(frozen=True)
class Finding:
    """One check and its result."""

    level: Level
    subject: str
    """The queue, or another thing that was checked."""
    check: str
    """A short and stable name of the check."""
    text: str
    fix: str | None = None
    is_fatal: bool = False
    """Whether a worker must not run with this fault."""


@dataclass(frozen=True)
class Subject:
    """Makes the findings of one check."""

    subject: str
    check: str

    def ok(self, text: str) -> Finding:
        """The subject is as it should be."""
        return Finding(Level.OK, self.subject, self.check, text)

    def warning(self, text: str, fix: str) -> Finding:
        """Somebody wants the subject so, and `fix` says how to end that."""
        return Finding(Level.WARNING, self.subject, self.check, text, fix)

    def fault(self, text: str, fix: str, *, is_fatal: bool = False) -> Finding:
        """The subject has a fault, and `fix` says how to correct it."""
        return Finding(Level.FAULT, self.subject, self.check, text, fix, is_fatal)

    def unknown(self, text: str, fix: str | None = None) -> Finding:
        """The subject could not be checked."""
        return Finding(Level.UNKNOWN, self.subject, self.check, text, fix)


def check_queue(name: str, options: Options, attributes: Attributes) -> Iterator[Finding]:
    """Compare a queue's attributes with the options."""
    yield from check_redrive_policy(name, options, attributes)
    yield check_visibility_timeout(name, options, attributes)
    yield _long_poll(name, options)
    yield _in_flight(name, options.most_in_flight, attributes)
    yield _message_size(name, options.max_message_bytes, attributes)
    yield encryption(name, attributes)


def check_redrive_policy(name: str, options: Options, attributes: Attributes) -> Iterator[Finding]:
    """Compare a queue's redrive policy with the options."""
    check = Subject(name, "redrive policy")
    address, wanted = options.queue(name), options.policy.max_receive_count
    policy = json.loads(attributes.get("RedrivePolicy") or "{}")
    if "deadLetterTargetArn" not in policy:
        yield check.fault(
            "there is none, so a message that kills its worker is delivered again without end",
            f"Set one with maxReceiveCount {wanted} and "
            f"{address.dead_letter_url or 'a dead-letter queue'} as its target.",
            is_fatal=True,
        )
        return
    target = str(policy["deadLetterTargetArn"])
    if address.dead_letter_url is None or _is_target(target, address):
        yield check.ok(f"SQS moves messages to {target.rpartition(':')[2]}")
    else:
        yield check.fault(
            f"its target is {target}, but workers send dead letters to {address.dead_letter_url}",
            "Set both to the same queue, so that all dead letters are in one place.",
        )
    yield _max_receive_count(name, options, int(policy["maxReceiveCount"]))


def check_visibility_timeout(name: str, options: Options, attributes: Attributes) -> Finding:
    """Compare a queue's visibility timeout with the options."""
    check, wanted = Subject(name, "visibility timeout"), options.policy.visibility_timeout
    actual = _number(attributes, "VisibilityTimeout")
    if actual is None:
        return check.unknown(NOT_GIVEN)
    if actual < wanted:
        return check.fault(
            f"{actual} s, and visibility_timeout is {wanted} s: another worker may receive a "
            "message whose task still runs",
            f"Set the queue's VisibilityTimeout to {wanted}.",
        )
    longer = f", longer than visibility_timeout ({wanted} s): a lost message waits that long"
    return check.ok(f"{actual} s{longer if actual > wanted else ''}")


def _long_poll(name: str, options: Options) -> Finding:
    """Compare the length of a poll with that of a lease. No relation of the two is a fault."""
    check = Subject(name, "long poll")
    poll, lease = options.wait_time_seconds, options.policy.visibility_timeout
    if lease < POLLS_PER_LEASE * poll:
        return check.ok(
            f"{poll} s, more than a third of visibility_timeout ({lease} s): messages that arrive "
            "late in a poll cost one more call, which extends their leases"
        )
    return check.ok(f"{poll} s, at most a third of visibility_timeout ({lease} s)")


def _in_flight(name: str, most: int, attributes: Attributes) -> Finding:
    """Compare the number of messages in flight with SQS's limit."""
    check = Subject(name, "messages in flight")
    count = _number(attributes, "ApproximateNumberOfMessagesNotVisible")
    if count is None:
        return check.unknown(NOT_GIVEN)
    if count >= most:
        return check.fault(
            f"{count}, at least most_in_flight ({most}). At {MOST_IN_FLIGHT} SQS returns no "
            "further message",
            "Find out why so many messages fail and wait for a retry, or are received and not "
            "ended.",
        )
    return check.ok(f"{count}; at {MOST_IN_FLIGHT} SQS returns no further message")


def check_dead_letters(
    name: str, url: str, queue: Attributes, dead_letters: Attributes
) -> Iterator[Finding]:
    """Compare a dead-letter queue's attributes with those of its queue."""
    its_name = name_of(url)
    yield _retention(its_name, queue, dead_letters)
    check = Subject(its_name, "no redrive policy")
    if dead_letters.get("RedrivePolicy"):
        yield check.fault(
            "it has one, so messages that are read are moved on", "Remove its redrive policy."
        )
    else:
        yield check.ok("messages stay here, however often they are read")
    yield _dead_letter_size(its_name, name, queue, dead_letters)
    yield encryption(its_name, dead_letters)


def check_routes(options: Options, policies: Mapping[str, str]) -> Finding:
    """Check that dead letters do not return to the queue they came from. `policies`: the known
    values of the attribute RedrivePolicy, by queue URL."""
    found = circle(options, policies)
    check = Subject(found[0].source if found else "queues", "dead letters")
    if found:
        return check.fault(
            in_words(found),
            "Let them end in a queue whose messages go to none of these.",
            is_fatal=True,
        )
    return check.ok("there is no loop")


def compare_clocks(theirs: datetime | None, before: float, after: float) -> Finding:
    """Compare this machine's clock with that of SQS. `theirs`: when SQS answered, in whole seconds,
    to a call between these two times of this machine."""
    check = Subject("clock", "SQS's time")
    if theirs is None:
        return check.unknown("SQS's answer has no date")
    ahead = max(before - (theirs.timestamp() + 1), 0)
    behind = max(theirs.timestamp() - after, 0)
    if max(ahead, behind) > CLOCK_TOLERANCE:
        off = f"{ahead:.0f} s ahead" if ahead else f"{behind:.0f} s behind"
        return check.fault(
            f"this machine's clock is {off}: delays end at the wrong time, and SQS refuses every "
            "call if the difference is a few minutes or more",
            "Synchronize it with a time service (NTP, chrony).",
        )
    return check.ok(f"this machine's clock agrees within {CLOCK_TOLERANCE} s")


def encryption(name: str, attributes: Attributes) -> Finding:
    """How a queue is encrypted, and which permissions that needs.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html
    """
    check = Subject(name, "encryption")
    if key := attributes.get("KmsMasterKeyId"):
        return check.ok(
            f"KMS key {key}: to send needs kms:GenerateDataKey and kms:Decrypt on it, to receive "
            "needs kms:Decrypt; a worker does both. Not tested"
        )
    if attributes.get("SqsManagedSseEnabled") == "true":
        return check.ok("with SQS's own keys, which needs no permission")
    return check.ok("SQS reports none")


def _is_target(arn: str, address: QueueAddress) -> bool:
    """Whether an ARN (…:account:name) and the URL (…/account/name) name the same queue."""
    *_, account, name = arn.split(":")
    *_, url_account, url_name = f"//{address.dead_letter_url}".rstrip("/").split("/")
    return name == url_name and (account == url_account or not url_account.isdigit())


def _max_receive_count(name: str, options: Options, actual: int) -> Finding:
    check = Subject(name, "maxReceiveCount")
    wanted, least = options.policy.max_receive_count, options.policy.max_attempts + SPARE_DELIVERIES
    if actual < wanted:
        return check.fault(
            f"{actual}, but max_receive_count is {wanted}: SQS moves a message to the dead-letter "
            "queue, without a reason, that a worker would still retry",
            f"Set it to {wanted}"
            + (f", or max_receive_count to {actual}." if actual >= least else "."),
        )
    more = f", more than max_receive_count ({wanted})"
    return check.ok(f"{actual}{more if actual > wanted else ''}")


def _message_size(name: str, wanted: int, attributes: Attributes) -> Finding:
    check, actual = Subject(name, "message size"), _number(attributes, "MaximumMessageSize")
    if actual is None:
        return check.unknown(NOT_GIVEN)
    if actual < wanted:
        return check.fault(
            f"{actual} bytes, but max_message_bytes is {wanted}: SQS refuses larger messages that "
            "this option allows",
            f"Set max_message_bytes to {actual}, or the queue's MaximumMessageSize to {wanted}.",
        )
    return check.ok(f"{actual} bytes")


def _dead_letter_size(
    name: str, queue: str, attributes: Attributes, dead_letters: Attributes
) -> Finding:
    check = Subject(name, "message size")
    largest = _number(attributes, "MaximumMessageSize")
    most = _number(dead_letters, "MaximumMessageSize")
    if largest is None or most is None:
        return check.unknown(NOT_GIVEN)
    if most < largest:
        return check.fault(
            f"{most} bytes, but messages of {queue} may have {largest}",
            f"Set its MaximumMessageSize to {largest}: a larger message cannot be dead-lettered.",
        )
    return check.ok(f"{most} bytes, enough for those of {queue}")


def _retention(name: str, queue: Attributes, dead_letters: Attributes) -> Finding:
    # If SQS moves a message, its age still counts from when it was sent to the first queue.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html
    check = Subject(name, "retention")
    own, queues = (_number(each, "MessageRetentionPeriod") for each in (dead_letters, queue))
    if own is None or queues is None:
        return check.unknown(NOT_GIVEN)
    own_days, queue_days = (f"{seconds / 86_400:g} days" for seconds in (own, queues))
    if own <= queues and own < LONGEST_RETENTION:
        return check.fault(
            f"{own_days}, but its queue keeps messages for {queue_days}: a message that SQS moves "
            "late is deleted soon after",
            f"Set its MessageRetentionPeriod to {LONGEST_RETENTION} (14 days).",
        )
    return check.ok(f"{own_days}; its queue: {queue_days}")


def _number(attributes: Attributes, name: str) -> int | None:
    # Servers other than Amazon's do not return all attributes.
    return int(attributes[name]) if name in attributes else None
