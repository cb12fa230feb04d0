"""Whether a queue is as the options say: pure functions from its attributes to findings.

The attributes are those of GetQueueAttributes:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqs_broker.limits import LONGEST_RETENTION
from sqs_broker.options import Options, QueueAddress
from sqs_broker.rules.policy import SPARE_DELIVERIES
from sqs_broker.rules.routes import circle, told
from sqs_broker.sqs.requests import name_of

#: A visibility timeout of so many long polls leaves no doubt about how old a lease is on arrival.
POLLS_PER_LEASE = 3

#: What is said of an attribute that the answer does not have.
NOT_SAID = "the server does not say"

Attributes = Mapping[str, str]


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    FAULT = "fault"
    UNKNOWN = "unknown"
    """It could not be looked at. Nothing is wrong that anybody knows of."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    level: Level
    subject: str
    """The queue, or what else was looked at."""
    check: str
    """What was looked for: a short and stable name."""
    text: str
    fix: str | None = None
    is_fatal: bool = False
    """Whether a worker must not run with it."""


@dataclass(frozen=True)
class Subject:
    """Makes the findings of one check."""

    subject: str
    check: str

    def ok(self, text: str) -> Finding:
        """It is as it should be."""
        return Finding(Level.OK, self.subject, self.check, text)

    def fault(self, text: str, fix: str, *, is_fatal: bool = False) -> Finding:
        """It is not, and this is how it would be."""
        return Finding(Level.FAULT, self.subject, self.check, text, fix, is_fatal)

    def unknown(self, text: str, fix: str | None = None) -> Finding:
        """Nobody could look."""
        return Finding(Level.UNKNOWN, self.subject, self.check, text, fix)


def check_queue(name: str, options: Options, attributes: Attributes) -> Iterator[Finding]:
    """Compare a queue's attributes with the options."""
    yield from check_redrive_policy(name, options, attributes)
    yield check_visibility_timeout(name, options, attributes)
    yield _long_poll(name, options)
    yield _message_size(name, options.max_message_bytes, attributes)
    yield encryption(name, attributes)


def check_redrive_policy(name: str, options: Options, attributes: Attributes) -> Iterator[Finding]:
    """Compare a queue's redrive policy with the options."""
    check = Subject(name, "redrive policy")
    address, wanted = options.queue(name), options.policy.max_receive_count
    policy = json.loads(attributes.get("RedrivePolicy") or "{}")
    if "deadLetterTargetArn" not in policy:
        yield check.fault(
            "there is none, so a message whose worker dies each time is delivered for ever",
            f"Set one with maxReceiveCount {wanted} and {address.dead_letter_url} as its target.",
            is_fatal=True,
        )
        return
    target = str(policy["deadLetterTargetArn"])
    if _is_target(target, address):
        yield check.ok(f"SQS's own dead letters go to {target.rpartition(':')[2]}")
    else:
        yield check.fault(
            f"its target is {target}, and our dead letters go to {address.dead_letter_url}",
            "Make them one: nobody looks for dead letters in two places.",
        )
    yield _max_receive_count(name, options, int(policy["maxReceiveCount"]))


def check_visibility_timeout(name: str, options: Options, attributes: Attributes) -> Finding:
    """Compare a queue's visibility timeout with the options."""
    check, ours = Subject(name, "visibility timeout"), options.policy.visibility_timeout
    its = _number(attributes, "VisibilityTimeout")
    if its is None:
        return check.unknown(NOT_SAID)
    if its < ours:
        return check.fault(
            f"{its} s, and visibility_timeout is {ours} s: another worker may get the message "
            "of a task that runs",
            f"Set the queue's VisibilityTimeout to {ours}.",
        )
    longer = f", longer than visibility_timeout ({ours} s): a lost message waits for it"
    return check.ok(f"{its} s{longer if its > ours else ''}")


def _long_poll(name: str, options: Options) -> Finding:
    """Compare the length of a poll with that of a lease: neither is wrong by the other."""
    check = Subject(name, "long poll")
    poll, lease = options.wait_time_seconds, options.policy.visibility_timeout
    if lease < POLLS_PER_LEASE * poll:
        return check.ok(
            f"{poll} s, more than a third of visibility_timeout ({lease} s): messages that come "
            "late in a poll cost one more call, which extends their leases on arrival"
        )
    return check.ok(f"{poll} s, within a third of visibility_timeout ({lease} s)")


def check_dead_letters(
    name: str, url: str, queue: Attributes, dead_letters: Attributes
) -> Iterator[Finding]:
    """Compare a dead-letter queue's attributes with those of its queue."""
    its = name_of(url)
    yield _retention(its, queue, dead_letters)
    check = Subject(its, "no redrive policy")
    if dead_letters.get("RedrivePolicy"):
        yield check.fault(
            "it has one, so that letters which are looked at move on", "Remove its redrive policy."
        )
    else:
        yield check.ok("letters stay here, however often they are looked at")
    yield _room(its, name, queue, dead_letters)
    yield encryption(its, dead_letters)


def check_routes(options: Options, policies: Mapping[str, str]) -> Finding:
    """Whether the dead letters of all queues end somewhere. `policies`: the RedrivePolicy of each
    queue that is known, by its URL."""
    found = circle(options, policies)
    check = Subject(found[0].source if found else "queues", "dead letters")
    if found:
        return check.fault(
            told(found), "Let them end in a queue that leads to none of these.", is_fatal=True
        )
    return check.ok("those of each queue end somewhere")


def encryption(name: str, attributes: Attributes) -> Finding:
    """How a queue is encrypted, and what that takes.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html
    """
    check = Subject(name, "encryption")
    if key := attributes.get("KmsMasterKeyId"):
        return check.ok(
            f"KMS key {key}: who sends needs kms:GenerateDataKey and kms:Decrypt on it, who "
            "receives kms:Decrypt; a worker does both. Not tried"
        )
    if attributes.get("SqsManagedSseEnabled") == "true":
        return check.ok("with SQS's own keys, which takes no permission")
    return check.ok("none, as far as SQS says")


def _is_target(arn: str, address: QueueAddress) -> bool:
    """Whether a queue's ARN and URL name one queue: …/account/name and …:account:name."""
    *_, account, name = arn.split(":")
    *_, url_account, url_name = f"//{address.dead_letter_url}".rstrip("/").split("/")
    return name == url_name and (account == url_account or not url_account.isdigit())


def _max_receive_count(name: str, options: Options, its: int) -> Finding:
    check = Subject(name, "maxReceiveCount")
    ours, least = options.policy.max_receive_count, options.policy.max_attempts + SPARE_DELIVERIES
    if its < ours:
        return check.fault(
            f"{its}, and max_receive_count is {ours}: SQS dead-letters, without a reason, what "
            "we would still retry",
            f"Set it to {ours}" + (f", or max_receive_count to {its}." if its >= least else "."),
        )
    return check.ok(f"{its}" + (f", more than max_receive_count ({ours})" if its > ours else ""))


def _message_size(name: str, ours: int, attributes: Attributes) -> Finding:
    check, its = Subject(name, "message size"), _number(attributes, "MaximumMessageSize")
    if its is None:
        return check.unknown(NOT_SAID)
    if its < ours:
        return check.fault(
            f"{its} bytes, and max_message_bytes is {ours}: SQS refuses what we let through",
            f"Set SQS_MAX_MESSAGE_BYTES to {its}, or the queue's MaximumMessageSize to {ours}.",
        )
    return check.ok(f"{its} bytes")


def _room(name: str, queue: str, its: Attributes, dead_letters: Attributes) -> Finding:
    check = Subject(name, "message size")
    largest, most = _number(its, "MaximumMessageSize"), _number(dead_letters, "MaximumMessageSize")
    if largest is None or most is None:
        return check.unknown(NOT_SAID)
    if most < largest:
        return check.fault(
            f"{most} bytes, and messages of {queue} may have {largest}",
            f"Set its MaximumMessageSize to {largest}: what does not fit is never dead-lettered.",
        )
    return check.ok(f"{most} bytes, enough for those of {queue}")


def _retention(name: str, queue: Attributes, dead_letters: Attributes) -> Finding:
    # The age of a message that SQS moves counts from when it was first sent.
    # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html
    check = Subject(name, "retention")
    its, theirs = (_number(each, "MessageRetentionPeriod") for each in (dead_letters, queue))
    if its is None or theirs is None:
        return check.unknown(NOT_SAID)
    shown, queue_shown = (f"{seconds / 86_400:g} days" for seconds in (its, theirs))
    if its <= theirs and its < LONGEST_RETENTION:
        return check.fault(
            f"{shown}, and its queue keeps messages for {queue_shown}: one that SQS moves late "
            "is lost soon after",
            f"Set its MessageRetentionPeriod to {LONGEST_RETENTION} (14 days).",
        )
    return check.ok(f"{shown}; its queue: {queue_shown}")


def _number(attributes: Attributes, name: str) -> int | None:
    # Servers other than Amazon's leave some out.
    return int(attributes[name]) if name in attributes else None
