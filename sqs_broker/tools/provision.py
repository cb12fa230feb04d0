"""Creates the queues that the options name, and makes those that exist as the options need them.

The attributes are those of CreateQueue and SetQueueAttributes:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqs_broker.limits import LONGEST_RETENTION
from sqs_broker.options import Options
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import ALL, name_of
from sqs_broker.tools.broker import asking

#: Seconds that a queue keeps a message. Less than a dead-letter queue, because the time in the
#: queue counts there too.
RETENTION = 4 * 24 * 3600

#: The tag that CloudFormation gives a queue of a stack, and that nobody else can set.
#: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cfn-resource-tags.html
STACK_TAG = "aws:cloudformation:stack-name"

#: Attributes that may be larger than wanted.
AT_LEAST = {"MessageRetentionPeriod"}

#: Attributes that are only set if the queue has none of these: a policy or a key of somebody's own
#: stays.
UNLESS: Mapping[str, Sequence[str]] = {
    "Policy": ("Policy",),
    "SqsManagedSseEnabled": ("KmsMasterKeyId",),
}

Attributes = Mapping[str, str]


class Result(StrEnum):
    """What was done with a queue."""

    CREATED = "created"
    CHANGED = "changed"
    SAME = "as it should be"
    DIFFERS = "differs"
    """It belongs to a stack, which was not touched."""


@dataclass(frozen=True)
class Difference:
    """An attribute that is not as the options need it."""

    attribute: str
    actual: str | None
    wanted: str

    def __str__(self) -> str:
        return f"{self.attribute}: {self.actual or 'not set'}, should be {self.wanted}"


@dataclass(frozen=True)
class Provided:
    """A queue, and what was done with it."""

    url: str
    result: Result
    differences: Sequence[Difference] = ()
    """What was changed, or must be changed in the stack."""
    stack: str | None = None


def provide(driver: Driver, options: Options) -> Iterator[Provided]:
    """Provide each dead-letter queue, then its queues. Raises ClickException if SQS refuses a
    call; what was done before stays, and a second call continues."""
    sources: dict[str, list[str]] = {}
    for address in options.queues.values():
        if address.dead_letter_url is not None:
            sources.setdefault(address.dead_letter_url, []).append(address.url)
    for dead_letter_url, urls in sources.items():
        dead_letters = Queue(dead_letter_url, driver)
        if (account := account_of(dead_letters)) is not None:
            yield _provide(dead_letters, of_dead_letters(options, account, urls))
        else:
            yield _create(dead_letters, of_dead_letters(options))
            # Who may use it as its dead-letter queue needs the account, which its ARN has.
            account = account_of(dead_letters)
            assert account is not None
            _set(dead_letters, of_dead_letters(options, account, urls))
        for url in urls:
            queue = Queue(url, driver)
            yield _provide(queue, of_queue(options, account, queue.url, dead_letter_url))


# Attributes ---------------------------------------------------------------------------------------


def of_queue(options: Options, account: str, url: str, dead_letter_url: str) -> dict[str, str]:
    """The attributes of a queue. `account`: the part of an ARN before the name of a queue."""
    redrive = {
        "deadLetterTargetArn": account + name_of(dead_letter_url),
        "maxReceiveCount": options.policy.max_receive_count,
    }
    return {
        "VisibilityTimeout": str(options.policy.visibility_timeout),
        "MessageRetentionPeriod": str(RETENTION),
        "RedrivePolicy": json.dumps(redrive),
        **_of_both(options, account, url),
    }


def of_dead_letters(
    options: Options, account: str | None = None, urls: Sequence[str] = ()
) -> dict[str, str]:
    """The attributes of the dead-letter queue of these queues; without an account, those that need
    none."""
    attributes = {"MessageRetentionPeriod": str(LONGEST_RETENTION)}
    if account is None:
        return attributes
    allowed = {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [account + name_of(url) for url in urls],
    }
    (dead_letter_url,) = {
        address.dead_letter_url for address in options.queues.values() if address.url in urls
    }
    assert dead_letter_url is not None
    attributes["RedriveAllowPolicy"] = json.dumps(allowed)
    return attributes | _of_both(options, account, dead_letter_url)


def _of_both(options: Options, account: str, url: str) -> dict[str, str]:
    return {
        "MaximumMessageSize": str(options.max_message_bytes),
        "ReceiveMessageWaitTimeSeconds": str(options.wait_time_seconds),
        "SqsManagedSseEnabled": "true",
        "Policy": json.dumps(_only_by_tls(account + name_of(url))),
    }


def _only_by_tls(arn: str) -> dict[str, Any]:
    statement = {
        "Sid": "OnlyByTls",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "sqs:*",
        "Resource": arn,
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return {"Version": "2012-10-17", "Statement": [statement]}


def differences(actual: Attributes, wanted: Attributes) -> list[Difference]:
    """The attributes that must be changed."""
    return [
        Difference(name, actual.get(name), value)
        for name, value in wanted.items()
        if not any(actual.get(other) for other in UNLESS.get(name, ()))
        and not _is_enough(name, actual.get(name), value)
    ]


def _is_enough(name: str, actual: str | None, wanted: str) -> bool:
    if actual is None:
        return False
    if name in AT_LEAST:
        return int(actual) >= int(wanted)
    if not wanted.startswith("{"):
        return actual == wanted
    try:
        return _comparable(json.loads(actual)) == _comparable(json.loads(wanted))
    except ValueError:
        return False


def _comparable(policy: dict[str, Any]) -> dict[str, Any]:
    # SQS returns maxReceiveCount as a number, and other servers as text; the order of ARNs is free.
    return {
        name: sorted(value) if name == "sourceQueueArns" else str(value)
        for name, value in policy.items()
    }


# Calls --------------------------------------------------------------------------------------------


def account_of(queue: Queue) -> str | None:
    """The part of a queue's ARN before its name; None if there is no such queue."""
    try:
        arn = queue.attributes("QueueArn").values["QueueArn"]
    except SqsError as exc:
        if exc.is_no_queue:
            return None
        with asking("GetQueueAttributes", queue.url):
            raise
    return arn.removesuffix(name_of(queue.url))


def _provide(queue: Queue, wanted: Attributes) -> Provided:
    try:
        actual = queue.attributes(ALL).values
    except SqsError as exc:
        if exc.is_no_queue:
            return _create(queue, wanted)
        with asking("GetQueueAttributes", queue.url):
            raise
    found = differences(actual, wanted)
    if not found:
        return Provided(queue.url, Result.SAME)
    if (stack := _stack_of(queue)) is not None:
        return Provided(queue.url, Result.DIFFERS, found, stack)
    _set(queue, {difference.attribute: difference.wanted for difference in found})
    return Provided(queue.url, Result.CHANGED, found)


def _create(queue: Queue, attributes: Attributes) -> Provided:
    with asking("CreateQueue", queue.url):
        queue.create(attributes)
    return Provided(queue.url, Result.CREATED)


def _set(queue: Queue, attributes: Attributes) -> None:
    with asking("SetQueueAttributes", queue.url):
        queue.set_attributes(attributes)


def _stack_of(queue: Queue) -> str | None:
    with asking("ListQueueTags", queue.url):
        return queue.tags().get(STACK_TAG)
