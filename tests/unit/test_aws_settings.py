"""Settings of AWS that people get wrong: one line names the variable and the fix."""

import logging
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery

from app.errors import SettingsError
from app.settings import get_settings
from app.startup import check_queues
from sqs_broker import install
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import CLIENTS, Options, QueueAddress
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.publisher import publish_many
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import FakeSqs
from sqs_broker.testing.fake_sqs import EPOCH
from sqs_broker.tools.broker import driver_of, refusal

ENDPOINT = "http://127.0.0.1:9"
QUEUE = f"{ENDPOINT}/1/jobs"
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}

JUNK = ["\r", " ", "\n", "\x1b[0m", "\u200b", "\u00a0"]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """What calls SQS."""
    name: str = request.param
    return name


def aws(**changes: object) -> Options:
    given = {"region": "us-east-1", "queues": {}, "endpoint_url": ENDPOINT, "credentials": KEYS}
    return Options(**given | changes)  # type: ignore[arg-type]  # each by its name


@pytest.fixture
def no_config(tmp_path: Path) -> str:
    """A file that is there and is no AWS config file."""
    path = tmp_path / "config"
    path.write_text("root:x:0:0\n")
    return str(path)


def line_of(raised: pytest.ExceptionInfo[ConfigurationError]) -> str:
    assert "\n" not in raised.value.message
    return raised.value.message


# Values


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", ENDPOINT),
        ("AWS_SQS_QUEUE_URL", QUEUE),
        ("AWS_SQS_DLQ_URL", QUEUE),
        ("AWS_ACCESS_KEY_ID", "AKIA1"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_SESSION_TOKEN", "token"),
        ("MONGO_URI", "mongodb://mongo.test/app"),
    ],
)
def test_a_value_with_an_invisible_character_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, junk: str
) -> None:
    monkeypatch.setenv(name, value + junk)
    with pytest.raises(SettingsError) as raised:
        get_settings()
    assert name in line_of(raised)
    assert "invisible character" in raised.value.message
    assert value not in raised.value.message


@pytest.mark.parametrize("region", ["", "-", "eu_west_1", "12", "eu-west-1-", '"eu-west-1"', "é"])
def test_what_is_no_name_of_a_region_is_refused(
    monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    monkeypatch.setenv("AWS_REGION", region or "-")
    with pytest.raises(SettingsError, match="AWS_REGION: should be the name of a region"):
        get_settings()


@pytest.mark.parametrize("region", ["us-east-1", "us-gov-west-1", "elasticmq", "eu-isoe-west-1"])
def test_the_name_of_a_region_is_accepted(monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    monkeypatch.setenv("AWS_REGION", region)
    assert get_settings().aws_region == region


def test_all_missing_variables_of_a_worker_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        get_settings().require_worker()
    assert line_of(raised).startswith(
        "AWS_REGION, AWS_SQS_QUEUE_URL, AWS_SQS_DLQ_URL and MONGO_URI are not set. Set them in"
    )


def test_a_worker_of_further_queues_alone_needs_no_default_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQS_QUEUES", f'{{"a": {{"url": "{QUEUE}", "dead_letter_url": "{QUEUE}"}}}}')
    with pytest.raises(SettingsError) as raised:
        get_settings().require_worker()
    assert line_of(raised).startswith("AWS_REGION and MONGO_URI are not set.")


# What boto3 finds


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("AWS_PROFILE", "AWS_PROFILE"),
        ("AWS_CONFIG_FILE", "AWS_CONFIG_FILE"),
        ("AWS_SHARED_CREDENTIALS_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
        ("AWS_DEFAULTS_MODE", "begin with AWS_"),
        ("AWS_STS_REGIONAL_ENDPOINTS", "begin with AWS_"),
    ],
)
def test_a_setting_that_boto3_cannot_use_is_named_before_the_first_request(
    monkeypatch: pytest.MonkeyPatch, no_config: str, variable: str, told: str, client: str
) -> None:
    monkeypatch.setenv(variable, no_config)
    with pytest.raises(ConfigurationError) as raised:
        driver_for(aws(client=client)).open()
    assert told in line_of(raised)
    assert "Correct" in raised.value.message
    # A traceback would print the cause, whose text has the value.
    assert raised.value.__suppress_context__


def test_a_region_of_a_project_of_its_own_is_named(client: str) -> None:
    with pytest.raises(ConfigurationError, match="`region` is not the name of a region"):
        driver_for(aws(region="us-east-1\r", client=client)).open()


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """A program that sends, whose AWS_PROFILE does not exist."""
    monkeypatch.setenv("AWS_PROFILE", "nope")
    app = Celery("producer", set_as_current=False)
    install(app)
    app.conf.broker_transport_options = {
        "region": "us-east-1",
        "endpoint_url": ENDPOINT,
        "credentials": KEYS,
        "predefined_queues": {"celery": {"url": QUEUE}},
    }

    @app.task(name="job", shared=False)
    def job() -> None: ...

    return app


def test_a_producer_gets_a_configuration_error(producer: Celery) -> None:
    with pytest.raises(ConfigurationError, match="AWS_PROFILE"):
        producer.tasks["job"].delay()


def test_a_producer_of_many_messages_gets_it_too(producer: Celery) -> None:
    with pytest.raises(ConfigurationError, match="AWS_PROFILE"):
        publish_many(producer.tasks["job"], [{}])


# Credentials


def without_credentials(client: str) -> SqsError:
    driver = driver_for(aws(credentials={}, client=client), tries=1)
    with pytest.raises(SqsError) as raised:
        Queue(QUEUE, driver).attributes("All")
    return raised.value


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({}, "NoCredentialsError"),
        ({"AWS_ACCESS_KEY_ID": "test"}, "PartialCredentialsError"),
        ({"AWS_ROLE_ARN": "arn:x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nope"}, "FileNotFoundError"),
    ],
)
def test_missing_credentials_are_called_so(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], code: str, client: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    error = without_credentials(client)
    assert (error.code, error.has_no_credentials, error.has_reached) == (code, True, False)
    told = refusal(error, "GetQueueAttributes", QUEUE)
    assert "no credentials" in told
    assert "AWS_PROFILE" in told
    assert "no answer" not in told


def test_a_command_with_half_of_the_credentials_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    with pytest.raises(Exception, match="no credentials for AWS that it can use"):
        driver_of(aws(credentials={}))


def test_a_worker_that_starts_without_credentials_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_queues(aws(credentials={}, queues={"jobs": QueueAddress(QUEUE)}))
    [record] = caplog.records
    assert vars(record)["event"] == "start.unchecked"
    assert "no credentials" in record.getMessage()


# The clock


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["event"] for record in caplog.records]


@pytest.mark.parametrize(("off", "said"), [(600, "600 s ahead"), (-600, "600 s behind")])
def test_a_worker_whose_clock_is_wrong_says_so_and_starts(
    fake: FakeSqs, options: Options, caplog: pytest.LogCaptureFixture, off: int, said: str
) -> None:
    wrong = EPOCH + timedelta(seconds=off)
    check_queues(options, now=lambda: wrong.timestamp() + (off > 0))
    [record] = [r for r in caplog.records if vars(r)["event"] == "start.clock"]
    assert record.levelno == logging.WARNING
    assert said in record.getMessage()
    assert "NTP" in record.getMessage()


def test_a_worker_that_sqs_refuses_for_its_clock_says_so(
    fake: FakeSqs, options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    error = SqsError("RequestExpired", at=EPOCH)
    fake.fail("GetQueueAttributes", error=error, times=2)
    check_queues(options, now=lambda: EPOCH.timestamp() + 600)
    assert events(caplog).count("start.clock") == 1


def test_a_worker_whose_clock_is_right_says_nothing_of_it(
    fake: FakeSqs, options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    check_queues(options, now=EPOCH.timestamp)
    assert "start.clock" not in events(caplog)
