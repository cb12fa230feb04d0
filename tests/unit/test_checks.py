"""A fault of a queue is found and shown with both numbers and its fix."""

import json
from dataclasses import replace
from typing import Any

import pytest

from sqs_broker.options import Options, QueueAddress
from sqs_broker.rules.policy import Policy
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import FakeSqs, State
from sqs_broker.tools.checks import Finding, Level, check_dead_letters, check_queue
from sqs_broker.tools.permissions import ON_QUEUE, check_permissions, permission

JOBS = "https://sqs.us-east-1.amazonaws.com/123456789012/jobs"
DEAD = "https://sqs.us-east-1.amazonaws.com/123456789012/dead"
ARN = "arn:aws:sqs:us-east-1:123456789012:dead"
DAY = 86_400

#: Visibility timeout 60 s, 10 receives, 3 attempts, 1 MiB.
OPTIONS = Options(region="us-east-1", queues={"jobs": QueueAddress(JOBS, DEAD)})


def queue(**changes: Any) -> dict[str, str]:
    """The attributes of a queue as it should be, but for the changes."""
    redrive = {"deadLetterTargetArn": ARN, "maxReceiveCount": 10} | changes.pop("redrive", {})
    attributes = {
        "VisibilityTimeout": 60,
        "MaximumMessageSize": 1_048_576,
        "MessageRetentionPeriod": 4 * DAY,
        "ApproximateNumberOfMessagesNotVisible": 59_999,
        "RedrivePolicy": json.dumps(redrive),
    }
    changed = {name: value for name, value in (attributes | changes).items() if value is not None}
    return {name: str(value) for name, value in changed.items()}


def dead_letters(**changes: Any) -> dict[str, str]:
    return queue(RedrivePolicy=None, **{"MessageRetentionPeriod": 14 * DAY, **changes})


def faults(findings: Any) -> list[Finding]:
    found = list(findings)
    assert all(finding.fix for finding in found if finding.level is Level.FAULT)
    return [finding for finding in found if finding.level is Level.FAULT]


def test_a_queue_as_it_should_be_has_no_fault() -> None:
    found = list(check_queue("jobs", OPTIONS, queue()))
    found += check_dead_letters("jobs", DEAD, queue(), dead_letters())
    assert {finding.level for finding in found} == {Level.OK}
    assert {finding.subject for finding in found} == {"jobs", "dead"}


@pytest.mark.parametrize(
    ("changes", "check", "shown"),
    [
        ({"RedrivePolicy": None}, "redrive policy", ("there is none", "10", DEAD)),
        ({"RedrivePolicy": ""}, "redrive policy", ("there is none",)),
        (
            {"ApproximateNumberOfMessagesNotVisible": 60_000},
            "messages in flight",
            ("60000", "120000"),
        ),
        (
            {"redrive": {"deadLetterTargetArn": ARN + "-other"}},
            "redrive policy",
            (ARN + "-other", DEAD),
        ),
        (
            {"redrive": {"deadLetterTargetArn": ARN.replace("123456789012", "210987654321")}},
            "redrive policy",
            ("210987654321",),
        ),
        ({"redrive": {"maxReceiveCount": 9}}, "maxReceiveCount", ("9", "10")),
        ({"redrive": {"maxReceiveCount": "5"}}, "maxReceiveCount", ("5", "10")),
        ({"VisibilityTimeout": 59}, "visibility timeout", ("59 s", "60 s")),
        ({"MaximumMessageSize": 262_144}, "message size", ("262144", "1048576")),
    ],
)
def test_a_fault_of_a_queue_is_shown_with_both_sides(
    changes: dict[str, Any], check: str, shown: tuple[str, ...]
) -> None:
    [fault] = faults(check_queue("jobs", OPTIONS, queue(**changes)))
    assert (fault.subject, fault.check) == ("jobs", check)
    assert all(each in f"{fault.text} {fault.fix}" for each in shown)


@pytest.mark.parametrize(("count", "lower"), [(9, True), (6, True), (5, False)])
def test_a_lower_setting_is_offered_only_if_attempts_fit_below_it(count: int, lower: bool) -> None:
    [fault] = faults(check_queue("jobs", OPTIONS, queue(redrive={"maxReceiveCount": count})))
    assert (f"max_receive_count to {count}" in (fault.fix or "")) is lower


@pytest.mark.parametrize(
    "changes",
    [
        {"redrive": {"maxReceiveCount": 11}},
        {"VisibilityTimeout": 61},
        {"SqsManagedSseEnabled": "true"},
        {"KmsMasterKeyId": "alias/jobs"},
    ],
)
def test_what_is_more_than_asked_for_is_no_fault(changes: dict[str, Any]) -> None:
    assert faults(check_queue("jobs", OPTIONS, queue(**changes))) == []


@pytest.mark.parametrize(
    ("timeout", "poll", "is_short"),
    [(60, 20, False), (59, 20, True), (15, 20, True), (15, 5, False), (1, 0, False)],
)
def test_a_visibility_timeout_of_less_than_three_polls_is_shown_with_its_cost_and_is_no_fault(
    timeout: int, poll: int, is_short: bool
) -> None:
    policy = Policy(visibility_timeout=timeout)
    options = replace(OPTIONS, wait_time_seconds=poll, policy=policy)
    found = list(check_queue("jobs", options, queue(VisibilityTimeout=timeout)))
    assert faults(found) == []
    [shown] = [finding.text for finding in found if finding.check == "long poll"]
    assert f"{poll} s" in shown
    assert f"({timeout} s)" in shown
    assert ("one more call" in shown) is is_short


def test_only_a_missing_redrive_policy_keeps_a_worker_from_running() -> None:
    [none] = faults(check_queue("jobs", OPTIONS, queue(RedrivePolicy=None)))
    [short] = faults(check_queue("jobs", OPTIONS, queue(VisibilityTimeout=1)))
    assert (none.is_fatal, short.is_fatal) == (True, False)


def test_a_local_server_has_no_account_in_its_urls() -> None:
    address = QueueAddress("http://localhost:9324/queue/jobs", "http://localhost:9324/queue/dead")
    options = replace(OPTIONS, queues={"jobs": address})
    assert faults(check_queue("jobs", options, queue())) == []


@pytest.mark.parametrize(
    ("of_queue", "of_dead", "check"),
    [
        ({}, {"MessageRetentionPeriod": 4 * DAY}, "retention"),
        ({}, {"MessageRetentionPeriod": DAY}, "retention"),
        ({"MessageRetentionPeriod": 14 * DAY}, {"MessageRetentionPeriod": 13 * DAY}, "retention"),
        ({}, {"MaximumMessageSize": 262_144}, "message size"),
        ({}, {"RedrivePolicy": '{"maxReceiveCount": 3}'}, "no redrive policy"),
    ],
)
def test_a_fault_of_a_dead_letter_queue_is_found(
    of_queue: dict[str, Any], of_dead: dict[str, Any], check: str
) -> None:
    attributes = dead_letters() | {name: str(value) for name, value in of_dead.items()}
    [fault] = faults(check_dead_letters("jobs", DEAD, queue(**of_queue), attributes))
    assert (fault.subject, fault.check) == ("dead", check)


def test_dead_letters_are_kept_as_long_as_can_be() -> None:
    both = {"MessageRetentionPeriod": 14 * DAY}
    assert faults(check_dead_letters("jobs", DEAD, queue(**both), dead_letters(**both))) == []


@pytest.mark.parametrize(
    "name", ["VisibilityTimeout", "MaximumMessageSize", "MessageRetentionPeriod"]
)
def test_an_attribute_that_a_server_does_not_return_is_no_fault(name: str) -> None:
    found = list(check_queue("jobs", OPTIONS, queue(**{name: None})))
    found += check_dead_letters("jobs", DEAD, queue(**{name: None}), dead_letters())
    assert faults(found) == []
    assert Level.UNKNOWN in {finding.level for finding in found}


def test_a_key_of_kms_comes_with_what_it_takes() -> None:
    found = check_queue("jobs", OPTIONS, queue(KmsMasterKeyId="alias/jobs"))
    [shown] = [finding.text for finding in found if finding.check == "encryption"]
    assert "alias/jobs" in shown
    assert "kms:GenerateDataKey" in shown
    assert "kms:Decrypt" in shown


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (SqsError("AccessDenied"), Level.FAULT),
        (SqsError("AccessDeniedException"), Level.FAULT),
        (SqsError("ReceiptHandleIsInvalid"), Level.OK),
        (SqsError("AWS.SimpleQueueService.MessageNotInflight"), Level.OK),
        (SqsError("EmptyBatchRequest"), Level.OK),
        (SqsError("InvalidParameterValue"), Level.OK),
        (None, Level.OK),
        (SqsError("RequestThrottled"), Level.UNKNOWN),
        (Unreached("EndpointConnectionError"), Level.UNKNOWN),
    ],
)
def test_a_refusal_shows_whether_the_action_was_allowed(
    error: SqsError | None, level: Level
) -> None:
    found = permission("jobs", "DeleteMessage", error)
    assert found.level is level
    assert found.check == "sqs:DeleteMessage"


@pytest.mark.parametrize("denied", [None, *ON_QUEUE])
def test_each_action_is_tried_and_no_message_is_touched(
    fake: FakeSqs, options: Options, denied: str | None
) -> None:
    url = options.queue("jobs").url
    fake.put(url, "{}")
    if denied:
        fake.deny(f"{denied}Batch" if denied == "SendMessage" else denied)
    found = {
        f.check.partition(":")[2]: f.level for f in check_permissions(Queue(url, fake), ON_QUEUE)
    }
    assert found == {name: Level.FAULT if name == denied else Level.OK for name in ON_QUEUE}
    assert [(m.state, m.receives) for m in fake.messages(url)] == [(State.VISIBLE, 0)]
