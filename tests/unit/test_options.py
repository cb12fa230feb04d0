"""`broker_transport_options`: what is missing or not supported is named; each option arrives."""

from typing import Any

import pytest

from app.messages import decode_json
from sqs_broker.errors import ConfigurationError, UnknownQueue
from sqs_broker.options import Options, QueueAddress
from sqs_broker.rules.policy import Policy

URL = "https://sqs.test/jobs"
LEAST = {"region": "us-east-1", "predefined_queues": {"jobs": {"url": URL}}}


def test_region_and_a_queue_are_enough() -> None:
    options = Options.read(LEAST)
    assert options == Options(region="us-east-1", queues={"jobs": QueueAddress(URL)})
    assert options.policy == Policy()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint_url", "http://127.0.0.1:9324"),
        ("credentials", {"aws_access_key_id": "k"}),
        ("wait_time_seconds", 0),
        ("max_message_bytes", 1_024),
        ("client", "boto3"),
    ],
)
def test_an_option_arrives_under_its_name(name: str, value: Any) -> None:
    assert getattr(Options.read(LEAST | {name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visibility_timeout", 77),
        ("max_attempts", 5),
        ("max_receive_count", 20),
        ("backoff_base", 1.5),
        ("backoff_max", 7),
    ],
)
def test_a_number_of_the_policy_arrives_in_the_policy(name: str, value: Any) -> None:
    assert getattr(Options.read(LEAST | {name: value}).policy, name) == value


def test_the_decoder_is_found_by_its_name() -> None:
    assert Options.read(LEAST | {"decode_json": "app.messages:decode_json"}).decode_json is (
        decode_json
    )


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "region"),
        (LEAST | {"region": ""}, "region"),
        ({"region": "us-east-1"}, "predefined_queues"),
        (LEAST | {"client": "wget"}, "`client` must be one of 'curl', 'boto3'"),
        (LEAST | {"predefined_queues": {}}, "predefined_queues"),
        (LEAST | {"predefined_queues": {"jobs": {}}}, "no `url` for queue 'jobs'"),
        (LEAST | {"predefined_queues": {"jobs": {"url": ""}}}, "no `url` for queue 'jobs'"),
        (LEAST | {"predefined_queues": {"jobs.fifo": {"url": URL}}}, "'jobs.fifo' is FIFO"),
    ],
)
def test_what_is_missing_or_not_supported_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Options.read(given)
    assert named in raised.value.message
    assert "\n" not in raised.value.message


def test_an_unknown_queue_is_told_with_those_that_are_known() -> None:
    queues = {"jobs": {"url": URL}, "mail": {"url": URL}}
    with pytest.raises(UnknownQueue, match=r"No queue 'job' is configured\. .* are: jobs, mail"):
        Options.read(LEAST | {"predefined_queues": queues}).queue("job")


def test_credentials_are_not_in_the_text_of_the_options() -> None:
    options = Options.read(LEAST | {"credentials": {"aws_secret_access_key": "hunter2-1f9c"}})
    assert "hunter2-1f9c" not in repr(options)
