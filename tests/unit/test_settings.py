"""Settings: what is missing or impossible is named, with the way out and never with its value."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import SettingsError
from app.settings import (
    VISIBILITY_MARGIN,
    FlowerSettings,
    FunctionSettings,
    Settings,
    get_flower_settings,
    get_function_settings,
    get_producer_settings,
    get_settings,
    use_mongo_uri,
)

SECRET = "hunter2-1f9c"

PRODUCER = {
    "AWS_REGION": "us-east-1",
    "AWS_SQS_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/sdc-sqs",
}
WORKER = PRODUCER | {
    "AWS_SQS_DLQ_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/sdc-sqs-dlq",
    "MONGO_URI": f"mongodb://user:{SECRET}@mongo.test/registrations?replicaSet=rs0",
}
QUEUES = (
    '{"mail": {"url": "https://sqs.test/mail", "dead_letter_url": "https://sqs.test/mail-dlq"}}'
)


def settings_of(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return get_settings()


def without(name: str, environment: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != name}


def fault_of(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    with pytest.raises(SettingsError) as raised:
        settings_of(monkeypatch, **environment)
    return raised.value.message


# What is missing


def test_a_producer_needs_only_region_and_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(monkeypatch, **PRODUCER)
    assert settings.require_queue() is settings


def test_a_worker_needs_its_dead_letter_queue_and_mongodb_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(monkeypatch, **WORKER)
    assert settings.require_worker() is settings
    assert settings.require_mongo_uri() == WORKER["MONGO_URI"]


def test_reading_an_empty_environment_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch).queues == {}


@pytest.mark.parametrize("name", PRODUCER)
@pytest.mark.parametrize("missing", ["absent", "empty"])
def test_what_a_producer_misses_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    environment = without(name, PRODUCER) | ({} if missing == "absent" else {name: ""})
    with pytest.raises(SettingsError) as raised:
        settings_of(monkeypatch, **environment).require_queue()
    assert raised.value.message.startswith(f"{name} is not set. Set it in the environment")
    assert "make run" in raised.value.message


@pytest.mark.parametrize("name", WORKER)
@pytest.mark.parametrize("missing", ["absent", "empty"])
def test_what_a_worker_misses_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, name: str, missing: str
) -> None:
    environment = without(name, WORKER) | ({} if missing == "absent" else {name: ""})
    with pytest.raises(SettingsError) as raised:
        settings_of(monkeypatch, **environment).require_worker()
    assert raised.value.message.startswith(f"{name} is not set. Set it in the environment")
    assert "\n" not in raised.value.message


def test_a_further_queue_without_dead_letters_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = '{"mail": {"url": "https://sqs.test/mail"}}'
    settings = settings_of(monkeypatch, **WORKER, SQS_QUEUES=queues)
    with pytest.raises(SettingsError, match="SQS_QUEUES has no dead_letter_url for queue 'mail'"):
        settings.require_worker()


@pytest.mark.parametrize("given", [{}, {"WORKER_METRICS_LOGIN": "prom:"}])
def test_a_worker_serves_its_metrics_to_others_only_behind_a_login(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    served = {"WORKER_METRICS_PORT": "9464", "WORKER_METRICS_ADDRESS": "0.0.0.0"}
    settings = settings_of(monkeypatch, **WORKER, **served, **given)
    with pytest.raises(SettingsError, match="WORKER_METRICS_LOGIN"):
        settings.require_worker()


@pytest.mark.parametrize(
    "given",
    [
        {"WORKER_METRICS_PORT": "9464"},
        {"WORKER_METRICS_ADDRESS": "0.0.0.0"},
        {"WORKER_METRICS_PORT": "9464", "WORKER_METRICS_ADDRESS": "::1"},
        {
            "WORKER_METRICS_PORT": "9464",
            "WORKER_METRICS_ADDRESS": "0.0.0.0",
            "WORKER_METRICS_LOGIN": "prom:s3cret",
        },
    ],
)
def test_a_worker_serves_its_metrics_to_this_machine_or_behind_a_login(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    assert settings_of(monkeypatch, **WORKER, **given).require_worker()


# What is impossible


@pytest.mark.parametrize("require", [Settings.require_worker, Settings.require_function])
def test_more_attempts_than_sqs_delivers_are_told_by_the_variables(
    monkeypatch: pytest.MonkeyPatch, require: Callable[[Settings], Settings]
) -> None:
    most = settings_of(monkeypatch, **WORKER, SQS_MAX_ATTEMPTS="7")
    assert require(most) is most
    get_settings.cache_clear()
    more = settings_of(monkeypatch, **WORKER, SQS_MAX_ATTEMPTS="9")
    with pytest.raises(SettingsError) as raised:
        require(more)
    assert "SQS_MAX_ATTEMPTS (9) must be at most 7" in str(raised.value)
    assert "SQS_MAX_RECEIVE_COUNT (10)" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STARTING_MONEY", "-1"),
        ("STARTING_MONEY", SECRET),
        ("ONCE_RETENTION_DAYS", "42"),
        ("WORKER_CONCURRENCY", "0"),
        ("TASK_SOFT_TIME_LIMIT", "0"),
        ("TASK_TIME_LIMIT", SECRET),
        ("SQS_VISIBILITY_TIMEOUT", "43201"),
        ("SQS_MAX_ATTEMPTS", "0"),
        ("SQS_MAX_RECEIVE_COUNT", "1001"),
        ("SQS_BACKOFF_BASE", "0"),
        ("SQS_BACKOFF_MAX", "43201"),
        ("SQS_UNKNOWN_TASK_GRACE", "-1"),
        ("SQS_ETA_MAX", "0"),
        ("SQS_MOST_IN_FLIGHT", "120001"),
        ("SQS_WAIT_TIME", "21"),
        ("SQS_MAX_MESSAGE_BYTES", "1048577"),
        ("LOG_LEVEL", SECRET),
        ("AWS_SQS_QUEUE_URL", SECRET),
        ("SQS_QUEUES", SECRET),
        ("SQS_QUEUES", "{"),
        ("SQS_QUEUES", f'["{SECRET}"]'),
        ("SQS_QUEUES", f'{{"mail": "{SECRET}"}}'),
        ("SQS_QUEUES", f'{{"mail": {{"uri": "{SECRET}"}}}}'),
    ],
)
def test_an_impossible_value_is_told_by_its_variable_and_never_by_itself(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    told = fault_of(monkeypatch, **(WORKER | {name: value}))
    assert name in told
    assert SECRET not in told
    assert "\n" not in told


def test_every_impossible_value_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = fault_of(monkeypatch, TASK_TIME_LIMIT="x", SQS_MAX_ATTEMPTS="0")
    assert "TASK_TIME_LIMIT: " in told
    assert "SQS_MAX_ATTEMPTS: " in told


def test_an_impossible_value_within_a_queue_is_told_by_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = fault_of(monkeypatch, SQS_QUEUES='{"mail": {"url": "https://x.test/mail", "tasks": 7}}')
    assert "SQS_QUEUES.mail.tasks: " in told


@pytest.mark.parametrize("value", ["{", SECRET, "-1"])
def test_the_cause_of_a_fault_is_not_shown_with_it(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    # A traceback would print the cause, whose text has the value.
    monkeypatch.setenv("SQS_QUEUES", value)
    with pytest.raises(SettingsError) as raised:
        get_settings()
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


# Queues


@pytest.mark.parametrize(
    "url", ["https://sqs.test/1/sdc-sqs", "https://sqs.test/1/sdc-sqs/", "http://x.test/sdc-sqs"]
)
def test_a_queue_is_named_by_the_end_of_its_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = settings_of(monkeypatch, **(WORKER | {"AWS_SQS_QUEUE_URL": url}))
    (name,) = settings.queues
    assert name == "sdc-sqs"
    assert settings.queues[name].url == url
    assert settings.queues[name].dead_letter_url == WORKER["AWS_SQS_DLQ_URL"]


def test_further_queues_come_after_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = '{"mail": {"url": "https://sqs.test/mail", "tasks": ["mail*", "sms"]}}'
    settings = settings_of(monkeypatch, **PRODUCER, SQS_QUEUES=queues)
    assert list(settings.queues) == ["sdc-sqs", "mail"]
    assert settings.queues["mail"].tasks == ("mail*", "sms")
    assert settings.queues["sdc-sqs"].tasks == ()


def test_there_may_be_no_queue_but_those_of_sqs_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        monkeypatch, **without("AWS_SQS_QUEUE_URL", WORKER), SQS_QUEUES=QUEUES
    ).require_worker()
    assert list(settings.queues) == ["mail"]


# Secrets


def test_no_secret_is_in_the_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = dict.fromkeys(
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), SECRET
    )
    settings = settings_of(monkeypatch, **WORKER, **secrets)
    for text in (repr(settings), str(settings), repr(settings.model_dump())):
        assert SECRET not in text
    assert set(settings.credentials.values()) == {SECRET}


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_half_of_a_pair_of_credentials_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, given: str, missing: str
) -> None:
    # Else boto3 would quietly use others.
    settings = settings_of(monkeypatch, **PRODUCER, **{given: SECRET})
    with pytest.raises(SettingsError, match=f"^{missing} is not set"):
        settings.require_queue()


@pytest.mark.parametrize(
    ("given", "credentials"),
    [
        ({}, {}),
        (
            {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"},
            {"aws_access_key_id": "k", "aws_secret_access_key": "s"},
        ),
        (
            {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"},
            {
                "aws_access_key_id": "k",
                "aws_secret_access_key": "s",
                "aws_session_token": "t",
            },
        ),
    ],
)
def test_without_static_credentials_boto3_looks_for_its_own(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], credentials: dict[str, str]
) -> None:
    assert settings_of(monkeypatch, **given).credentials == credentials


# Flower


def test_flower_stays_on_this_machine_and_has_no_login_by_itself() -> None:
    settings = get_flower_settings()
    assert (settings.address, settings.port) == ("127.0.0.1", 5555)
    assert settings.logins == []
    assert (settings.auth, settings.auth_provider) == (None, None)


def test_logins_by_password_are_parted_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_BASIC_AUTH", f"kim:{SECRET},lee:a:b")
    settings = get_flower_settings()
    assert settings.logins == [f"kim:{SECRET}", "lee:a:b"]
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("FLOWER_PORT", SECRET), ("FLOWER_PORT", "0"), ("FLOWER_OAUTH2_REDIRECT_URI", SECRET)],
)
def test_an_impossible_value_of_flower_is_told_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name}: ") as raised:
        get_flower_settings()
    assert SECRET not in raised.value.message


# Defaults and sources


def test_the_visibility_timeout_covers_the_hard_limit_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(monkeypatch, TASK_TIME_LIMIT="100")
    assert settings.visibility_timeout == 100 + VISIBILITY_MARGIN


def test_a_given_visibility_timeout_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, SQS_VISIBILITY_TIMEOUT="77").visibility_timeout == 77


def test_the_defaults_are_those_that_are_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(monkeypatch)
    assert (settings.task_soft_time_limit, settings.task_time_limit) == (25, 30)
    assert settings.visibility_timeout == 60
    assert (settings.sqs_max_attempts, settings.sqs_max_receive_count) == (3, 10)


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = settings_of(monkeypatch, LOG_LEVEL="DEBUG")
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    assert get_settings() is first


def test_a_dotenv_file_is_read_and_the_environment_goes_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("LOG_LEVEL=ERROR\nSQS_WAIT_TIME=7\nOF_SOMETHING_ELSE=1\nFLOWER_PORT=7\n")
    # tests/conftest.py keeps the developer's own file out.
    monkeypatch.setitem(Settings.model_config, "env_file", str(dotenv))
    monkeypatch.setitem(FlowerSettings.model_config, "env_file", str(dotenv))
    settings = settings_of(monkeypatch, LOG_LEVEL="DEBUG")
    assert (settings.log_level, settings.sqs_wait_time) == ("DEBUG", 7)
    assert get_flower_settings().port == 7


def test_each_setting_is_described_for_its_table() -> None:
    fields = Settings.model_fields | FlowerSettings.model_fields | FunctionSettings.model_fields
    assert [name for name, field in fields.items() if not field.description] == []


def test_the_example_is_all_that_a_worker_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    example = Path(__file__).parents[2] / ".env.example"
    monkeypatch.setitem(Settings.model_config, "env_file", str(example))
    assert not set(WORKER) & set(os.environ)
    assert get_settings().require_worker()


# In another program

GIVEN = {"AWS_REGION": "us-east-1", "AWS_SQS_QUEUE_URL": "http://127.0.0.1:1/1/jobs"}
#: What another program may mean by a variable of the same name.
FOREIGN = {
    "LOG_LEVEL": "trace",
    "TASK_TIME_LIMIT": "1h",
    "TASK_SOFT_TIME_LIMIT": "none",
    "WORKER_CONCURRENCY": "auto",
    "MONGO_URI": "a value with spaces",
    "CONTROL_DATABASE": "a/b",
    "STARTING_MONEY": "much",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_producer_takes_no_notice_of_what_it_does_not_need(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable, value in (GIVEN | FOREIGN).items():
        monkeypatch.setenv(variable, value)
    settings = get_producer_settings().require_queue()
    assert list(settings.queues) == ["jobs"]
    assert getattr(settings, name.lower()) == Settings.model_fields[name.lower()].default
    # Whoever needs it gets an error.
    with pytest.raises(SettingsError, match=name):
        get_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_REGION", "no region"),
        ("AWS_SQS_QUEUE_URL", "jobs"),
        ("SQS_QUEUES", "no JSON"),
        ("SQS_QUEUES", '{"jobs": {}}'),
        ("AWS_ENDPOINT_URL", "nowhere"),
        ("SQS_MAX_MESSAGE_BYTES", "1 MiB"),
    ],
)
def test_a_producer_names_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for variable, given in (GIVEN | FOREIGN | {name: value}).items():
        monkeypatch.setenv(variable, given)
    with pytest.raises(SettingsError, match=name) as raised:
        get_producer_settings()
    assert "LOG_LEVEL" not in str(raised.value)


@pytest.mark.parametrize("content", [b"\xff\xfeA=1\n", b"LOG_LEVEL=trace\nA B C\n=\n"])
def test_a_dotenv_file_of_somebody_else_does_not_stop_a_producer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.setitem(Settings.model_config, "env_file", str(tmp_path / ".env"))
    for variable, value in GIVEN.items():
        monkeypatch.setenv(variable, value)
    assert get_producer_settings().require_queue().aws_region == "us-east-1"


def test_a_dotenv_file_that_cannot_be_read_is_an_error_for_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfeA=1\n")
    monkeypatch.setitem(Settings.model_config, "env_file", str(tmp_path / ".env"))
    with pytest.raises(SettingsError, match=r"\.env .* cannot be read \(UnicodeDecodeError\)"):
        get_settings()


@pytest.mark.parametrize("level", ["debug", "Info", "WARNING"])
def test_a_log_level_may_be_written_in_small_letters(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    assert get_settings().log_level == level.upper()


# A Lambda function


def test_a_function_needs_its_dead_letter_queue_and_no_uri_of_mongodb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SettingsError, match="AWS_SQS_DLQ_URL is not set"):
        settings_of(monkeypatch, **PRODUCER).require_function()
    get_settings.cache_clear()
    settings = settings_of(monkeypatch, **without("MONGO_URI", WORKER))
    assert settings.require_function() is settings


def test_in_a_function_boto3_itself_finds_the_credentials_which_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = PRODUCER | {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": SECRET}
    assert settings_of(monkeypatch, **given).credentials
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "registrations")
    assert get_settings().credentials == {}


def test_the_uri_of_a_secret_goes_before_the_variable_and_is_checked_as_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings_of(monkeypatch, **WORKER).require_mongo_uri() == WORKER["MONGO_URI"]
    use_mongo_uri("mongodb://another/registrations")
    assert get_settings().require_mongo_uri() == "mongodb://another/registrations"
    use_mongo_uri(f"mongodb://another/{SECRET}\n")
    with pytest.raises(SettingsError) as raised:
        get_settings()
    assert SECRET not in raised.value.message


@pytest.mark.parametrize(
    "arn", ["secret", "arn:aws", "arn:aws:secretsmanager:eu west-1:1:secret:a"]
)
def test_the_arn_of_the_secret_is_checked(monkeypatch: pytest.MonkeyPatch, arn: str) -> None:
    monkeypatch.setenv("MONGO_SECRET_ARN", arn)
    with pytest.raises(SettingsError, match="MONGO_SECRET_ARN"):
        get_function_settings()
