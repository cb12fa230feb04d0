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


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("visibility_timeout", "60", "a whole number of seconds from 1 to 43200, not a text"),
        ("visibility_timeout", 0, "a whole number of seconds from 1 to 43200"),
        ("visibility_timeout", 43_201, "from 1 to 43200"),
        ("visibility_timeout", None, "a whole number"),
        ("visibility_timeout", True, "a whole number"),
        ("visibility_timeout", 1.5, "a whole number"),
        ("wait_time_seconds", "20", "a whole number of seconds from 0 to 20, not a text"),
        ("wait_time_seconds", 30, "from 0 to 20"),
        ("max_attempts", "3", "a whole number of failed runs of at least 1"),
        ("max_attempts", 0, "at least 1"),
        ("max_receive_count", 0, "at least 1"),
        ("max_receivers", 0, "at least 1"),
        ("max_message_bytes", 2_000_000, "from 1 to 1048576"),
        ("most_in_flight", "all", "not a text"),
        ("backoff_base", -1, "a number of seconds of at least 0"),
        ("backoff_max", "10", "not a text"),
        ("eta_max", float("nan"), "a number of seconds"),
        ("longest_wait", 0, "a number of seconds above 0"),
        ("unknown_task_grace", "0", "not a text"),
        ("receive_pause_max", float("inf"), "a number of seconds"),
        ("shutdown_timeout", "90", "not a text"),
        ("unhealthy_exit", -1, "at least 0"),
        ("heartbeat", "no", "True or False, not a text"),
        ("cancel_on_lease_loss", "false", "True or False, not a text"),
        ("log_texts", 1, "True or False"),
        ("region", 5, "a text"),
        ("endpoint_url", 9324, "a text"),
        ("predefined_queues", ["jobs"], "a dictionary"),
        ("credentials", "key:secret", "a dictionary"),
        ("client-config", [], "a dictionary"),
        ("metrics", 9090, "a dictionary"),
        ("control", [], "a dictionary, or the import path of a function"),
        ("schemas", ["shop.add"], "a dictionary"),
        ("observers", "mine.metrics:observer", "a list, not a text"),
        ("brackets", "mine.traces:bracket", "a list, not a text"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_refused_by_name(
    name: str, value: Any, wanted: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Options.read(LEAST | {name: value})
    assert f"`{name}` must be " in raised.value.message
    assert wanted in raised.value.message


@pytest.mark.parametrize("name", ["endpoint_url", "credentials", "metrics", "observers", "control"])
def test_none_is_the_default_of_what_is_no_number(name: str) -> None:
    assert Options.read(LEAST | {name: None}) == Options.read(LEAST)


def test_a_queue_is_a_dictionary() -> None:
    with pytest.raises(ConfigurationError, match="queue 'jobs' must be a dictionary"):
        Options.read(LEAST | {"predefined_queues": {"jobs": URL}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decode_json", "nowhere.at:all"),
        ("driver", "app.messages:no_such_name"),
        ("observers", ["nowhere.at:all"]),
        ("brackets", ["nowhere.at:all"]),
        ("schemas", {"shop.add": "nowhere.at:all"}),
    ],
)
def test_an_import_path_that_leads_nowhere_is_named_with_its_option(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"`{name}` names .*, which cannot be imported"):
        Options.read(LEAST | {name: value})


@pytest.mark.parametrize(
    ("control", "named"),
    [
        ({"database_uri": "redis://hunter2@cache"}, "`database_uri` must be a URI of MongoDB"),
        ({"database_uri": 5}, "`database_uri` must be a text"),
        ({"size_bytes": "64"}, "`size_bytes` must be a whole number of bytes"),
        ({"revokes_seconds": 0}, "`revokes_seconds` must be a whole number of seconds"),
        ({"event_exchange": 5}, "`event_exchange` must be a text"),
    ],
)
def test_a_value_that_the_control_plane_does_not_take_is_refused_by_name(
    control: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named) as raised:
        Options.read(LEAST | {"control": control})
    assert "hunter2" not in raised.value.message


def test_a_function_of_the_control_plane_that_is_not_there_is_named_with_its_option() -> None:
    options = Options.read(LEAST | {"control": "nowhere.at:all"})
    with pytest.raises(ConfigurationError, match=r"`control` names .*, which cannot be imported"):
        options.control_options()
