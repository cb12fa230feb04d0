"""Credentials and a region of a queue, a role of STS, and botocore's settings: boto3's driver has
them, whatever client the options prefer."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

import pytest

from sqs_broker.errors import ConfigurationError
from sqs_broker.options import Options
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from tests.unit import scripted
from tests.unit.scripted import Script

ROLE = "arn:aws:iam::123456789012:role/worker"


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted.running() as script:
        yield script


@pytest.fixture
def sts(script: Script, monkeypatch: pytest.MonkeyPatch) -> Script:
    """An endpoint that is also that of STS."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", script.url)
    return script


def read(script: Script, **given: Any) -> Options:
    """The options of two queues, one of which has credentials and a region of its own."""
    own = {"access_key_id": "AKIAOWN", "secret_access_key": "s", "region": "eu-west-1"}
    urls = {"url": f"{script.url}/1/own", "dead_letter_url": f"{script.url}/1/own-dlq"}
    queues = {"jobs": {"url": f"{script.url}/1/jobs"}, "own": urls | own}
    key = {"aws_access_key_id": "AKIAALL", "aws_secret_access_key": "s"}
    return Options.read(
        {
            "region": "us-east-1",
            "endpoint_url": script.url,
            "credentials": key,
            "predefined_queues": queues,
        }
        | given
    )


def call(script: Script, options: Options, *queues: str) -> None:
    """Call SQS about each of these queues."""
    with closing(driver_for(options, tries=1)) as driver:
        for name in queues:
            script.answer()
            Queue(f"{script.url}/1/{name}", driver).attributes("All")


def asked_with(script: Script) -> list[tuple[str | Any, ...]]:
    """The key, region and service that each request was signed for."""
    signed = [
        re.search(r"Credential=(\w+)/\d+/([\w-]+)/(\w+)", asked.headers["Authorization"])
        for asked in script.asked
    ]
    return [match.groups() for match in signed if match]


def role_answer(script: Script, key: str, seconds: float) -> None:
    """STS's answer: credentials that expire in so many seconds."""
    until = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    script.answer(
        "<AssumeRoleResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><AssumeRoleResult>"
        f"<Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
        f"<SessionToken>t</SessionToken><Expiration>{until}</Expiration></Credentials>"
        "</AssumeRoleResult></AssumeRoleResponse>"
    )


def test_a_queue_is_called_with_its_own_credentials_and_region(script: Script) -> None:
    call(script, read(script), "jobs", "own", "own-dlq", "own")
    own = ("AKIAOWN", "eu-west-1", "sqs")
    assert asked_with(script) == [("AKIAALL", "us-east-1", "sqs"), own, own, own]


def test_a_role_is_assumed_and_its_credentials_are_used(sts: Script) -> None:
    role_answer(sts, "ASIAROLE", 1_800)
    call(sts, read(sts, sts_role_arn=ROLE, sts_token_timeout=1_800), "jobs", "jobs")
    calls = asked_with(sts)
    assert calls == [("AKIAALL", "us-east-1", "sts"), *[("ASIAROLE", "us-east-1", "sqs")] * 2]
    assert f"RoleArn={quote_plus(ROLE)}" in sts.asked[0].body.decode()
    assert "DurationSeconds=1800" in sts.asked[0].body.decode()


def test_a_role_of_fifteen_minutes_is_not_assumed_for_each_call(sts: Script) -> None:
    role_answer(sts, "ASIAROLE", 900)
    call(sts, read(sts, sts_role_arn=ROLE), "jobs", "jobs", "jobs")
    assert [service for _, _, service in asked_with(sts)] == ["sts", "sqs", "sqs", "sqs"]


@pytest.mark.parametrize(("early", "is_renewed"), [(0, False), (500, True)])
def test_the_credentials_of_a_role_are_renewed_before_they_expire(
    sts: Script, early: int, is_renewed: bool
) -> None:
    role_answer(sts, "ASIAFIRST", 400)
    if is_renewed:
        role_answer(sts, "ASIASECOND", 900)
    call(sts, read(sts, sts_role_arn=ROLE, sts_token_buffer_time=early), "jobs")
    assert asked_with(sts)[-1][0] == ("ASIASECOND" if is_renewed else "ASIAFIRST")


def test_a_queue_s_own_credentials_assume_the_role(sts: Script) -> None:
    options = read(sts, sts_role_arn=ROLE)
    with closing(driver_for(options, tries=1)) as driver:
        role_answer(sts, "ASIAROLE", 900)
        sts.answer()
        Queue(f"{sts.url}/1/own", driver).attributes("All")
    assert asked_with(sts) == [("AKIAOWN", "eu-west-1", "sts"), ("ASIAROLE", "eu-west-1", "sqs")]


def test_a_role_that_sts_refuses_is_named(sts: Script) -> None:
    sts.answer("<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>", 403)
    with pytest.raises(SqsError) as raised:
        call(sts, read(sts, sts_role_arn=ROLE), "jobs")
    error = raised.value
    assert (error.code, error.has_no_credentials) == ("AssumeRole: AccessDenied", True)


def test_the_project_s_client_config_is_used(script: Script) -> None:
    call(script, read(script, **{"client-config": {"user_agent_extra": "shop/7"}}), "jobs")
    assert "shop/7" in script.asked[0].headers["User-Agent"]


@pytest.mark.parametrize("given", [{"proxis": 1}, {"s3": {"addressing_style": "x"}}])
def test_a_client_config_that_botocore_does_not_take_is_named(
    script: Script, given: dict[str, Any]
) -> None:
    options = read(script, **{"client-config": given})
    with pytest.raises(ConfigurationError, match="`client-config` has a name or a value"):
        driver_for(options, tries=1)


@pytest.mark.parametrize(
    "given", [{"sts_role_arn": ROLE}, {"client-config": {"user_agent_extra": "shop/7"}}, {}]
)
def test_libcurl_by_name_is_refused_with_what_only_boto3_has(
    script: Script, given: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="needs boto3"):
        driver_for(read(script, client="curl", **given))
