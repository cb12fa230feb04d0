"""Dead letters that come back are found, however the URLs of one queue are spelt."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import get_settings
from app.startup import check_dead_letter_urls
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import Options, QueueAddress
from sqs_broker.rules.routes import By, circle, identity, identity_of_arn, in_words
from sqs_broker.tools.checks import Level, check_routes

AWS = "https://sqs.eu-central-1.amazonaws.com/123456789012"
LOCAL = "http://localhost:9324/000000000000"


def options(endpoint: str | None = None, **queues: tuple[str, str | None]) -> Options:
    """`jobs=(url, dead_letter_url)`, and so on."""
    return Options(
        region="eu-central-1",
        queues={name: QueueAddress(*urls) for name, urls in queues.items()},
        endpoint_url=endpoint,
    )


def policy(arn: str) -> str:
    return json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 10})


def arn(name: str) -> str:
    return f"arn:aws:sqs:eu-central-1:123456789012:{name}"


# One queue, many URLs


@pytest.mark.parametrize(
    "url",
    [
        f"{AWS}/jobs",
        f"{AWS}/jobs/",
        f"{AWS}//jobs",
        f"{AWS}/%6Aobs",
        f"{AWS}/jobs?x=1",
        f"{AWS}/jobs#x",
        "https://SQS.eu-central-1.AmazonAWS.com/123456789012/jobs",
        "https://sqs.eu-central-1.amazonaws.com:443/123456789012/jobs",
        "https://sqs.eu-central-1.amazonaws.com./123456789012/jobs",
        "http://sqs.eu-central-1.amazonaws.com/123456789012/jobs",
        "https://kim:secret@sqs.eu-central-1.amazonaws.com/123456789012/jobs",
        "https://eu-central-1.queue.amazonaws.com/123456789012/jobs",
        "https://sqs-fips.eu-central-1.amazonaws.com/123456789012/jobs",
        "https://sqs.eu-central-1.api.aws/123456789012/jobs",
        "https://vpce-0a1b-2c3d.sqs.eu-central-1.vpce.amazonaws.com/123456789012/jobs",
        "https://vpce-0a1b-2c3d-eu-central-1a.sqs.eu-central-1.vpce.amazonaws.com/123456789012/jobs",
        # A name of one's own for the endpoint of a private network.
        "https://sqs.internal.example.com/123456789012/jobs",
    ],
)
def test_a_queue_on_aws_is_one_by_any_of_its_urls(url: str) -> None:
    assert identity(url, options()) == identity(f"{AWS}/jobs", options())
    assert identity(url, options()) == identity_of_arn(arn("jobs"), options())
    assert circle(options(jobs=(f"{AWS}/jobs", url)))
    assert circle(options(jobs=(url, f"{AWS}/jobs")))


def test_the_oldest_host_is_in_the_first_region() -> None:
    url = "https://queue.amazonaws.com/123456789012/jobs"
    assert identity(url, options()).region == "us-east-1"
    assert identity("https://queue.amazonaws.com.cn/1/jobs", options()).region == "eu-central-1"


@pytest.mark.parametrize(
    "url",
    [
        f"{LOCAL}/jobs/",
        "http://127.0.0.1:9324/000000000000/jobs",
        "http://[::1]:9324/000000000000/jobs",
        "http://sqs:9324/000000000000/jobs",
        "http://LOCALHOST/000000000000/jobs",
        "http://sqs.us-east-1.localhost.localstack.cloud:4566/000000000000/jobs",
        "http://localhost:4566/queue/us-east-1/000000000000/jobs",
        "http://localhost:9324/queue/jobs",
        "https://sqs.us-east-1.amazonaws.com/000000000000/jobs",
    ],
)
def test_at_an_endpoint_of_ones_own_the_host_makes_no_difference(url: str) -> None:
    # All calls go to the endpoint, whatever the host of a queue's URL.
    at = options("http://localhost:9324", jobs=(f"{LOCAL}/jobs", url))
    [route] = circle(at)
    assert (route.source, route.target, route.by) == ("jobs", "jobs", By.SETTING)


@pytest.mark.parametrize(
    "url",
    [
        f"{AWS}/jobs-dlq",
        f"{AWS}/Jobs",
        "https://sqs.eu-central-1.amazonaws.com/210987654321/jobs",
        "https://sqs.us-east-1.amazonaws.com/123456789012/jobs",
        "https://eu-west-1.queue.amazonaws.com/123456789012/jobs",
        "https://example.com/tenant/jobs",
        "http://[",
        "https://example.com",
    ],
)
def test_another_queue_is_another(url: str) -> None:
    assert circle(options(jobs=(f"{AWS}/jobs", url))) == ()


def test_other_accounts_of_a_server_of_ones_own_have_other_queues() -> None:
    at = options(LOCAL, jobs=("http://x/111111111111/jobs", "http://x/222222222222/jobs"))
    assert circle(at) == ()


# Ways back


def test_a_chain_that_ends_is_no_circle() -> None:
    chain = options(a=(f"{AWS}/a", f"{AWS}/b"), b=(f"{AWS}/b", f"{AWS}/c"), c=(f"{AWS}/c", None))
    assert circle(chain) == ()
    shared = options(a=(f"{AWS}/a", f"{AWS}/z"), b=(f"{AWS}/b", f"{AWS}/z"))
    assert circle(shared) == ()
    assert circle(shared, {f"{AWS}/a": policy(arn("z")), f"{AWS}/z": ""}) == ()


@pytest.mark.parametrize("length", range(1, 5))
def test_a_circle_of_any_length_is_found(length: int) -> None:
    names = "abcd"[:length]
    ring = zip(names, names[1:] + names[0], strict=True)
    queues = {name: (f"{AWS}/{name}", f"{AWS}/{after}/") for name, after in ring}
    entry = {"entry": (f"{AWS}/entry", f"{AWS}/a"), "other": (f"{AWS}/other", f"{AWS}/end")}
    found = circle(options(**entry, **queues))
    assert sorted(route.configured or "" for route in found) == sorted(names)
    assert found[-1].target == found[0].source


@pytest.mark.parametrize(
    "policies",
    [
        {f"{AWS}/jobs": policy(arn("jobs"))},
        {f"{AWS}/dead": policy(arn("jobs"))},
        {f"{AWS}/dead": policy(arn("other")), f"{AWS}/other": policy(arn("jobs"))},
        {f"{AWS}/jobs": policy(arn("mail"))},
    ],
    ids=str,
)
def test_sqs_s_own_redrive_policies_lead_back_too(policies: Mapping[str, str]) -> None:
    both = options(jobs=(f"{AWS}/jobs", f"{AWS}/dead"), mail=(f"{AWS}/mail", f"{AWS}/jobs"))
    assert circle(both) == ()
    found = circle(both, policies)
    assert By.POLICY in {route.by for route in found}
    finding = check_routes(both, policies)
    assert (finding.level, finding.is_fatal) == (Level.FAULT, True)
    assert "its redrive policy" in finding.text


def test_all_is_well_where_dead_letters_end() -> None:
    assert check_routes(options(jobs=(f"{AWS}/jobs", f"{AWS}/dead")), {}).level is Level.OK


names = st.sampled_from("abcdef")


@given(st.dictionaries(names, names | st.none()))
def test_there_is_a_circle_where_following_the_letters_never_ends(
    ways: dict[str, str | None],
) -> None:
    queues = {name: (f"{AWS}/{name}", to and f"{AWS}/{to}") for name, to in ways.items()}

    def ends(name: str | None) -> bool:
        for _ in range(len(ways) + 1):
            name = ways.get(name) if name else None
        return name is None

    assert (circle(options(**queues)) == ()) is all(map(ends, ways))


# What is said


def test_a_circle_is_told_in_one_line_without_what_a_url_may_hide() -> None:
    secret = "https://kim:hunter2@sqs.eu-central-1.amazonaws.com/123456789012/jobs"
    said = in_words(circle(options(jobs=(secret, secret))))
    assert "those of jobs to jobs itself (dead_letter_url)" in said
    assert "hunter2" not in said
    assert "\n" not in said


def test_a_queue_is_told_by_both_of_its_names() -> None:
    said = in_words(circle(options(mail=(f"{AWS}/jobs", f"{AWS}/jobs"))))
    assert "those of mail (jobs) to jobs itself" in said


@pytest.mark.parametrize(
    ("more", "dead", "variables"),
    [
        ({}, f"{AWS}/jobs/", "AWS_SQS_DLQ_URL: "),
        (
            {"mail": {"url": f"{AWS}/mail", "dead_letter_url": f"{AWS}/jobs"}},
            f"{AWS}/mail",
            "AWS_SQS_DLQ_URL and SQS_QUEUES: ",
        ),
        (
            {"mail": {"url": f"{AWS}/mail", "dead_letter_url": f"{AWS}/mail"}},
            f"{AWS}/dead",
            "SQS_QUEUES: ",
        ),
    ],
)
def test_the_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, more: object, dead: str, variables: str
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_SQS_QUEUE_URL", f"{AWS}/jobs")
    monkeypatch.setenv("AWS_SQS_DLQ_URL", dead)
    monkeypatch.setenv("SQS_QUEUES", json.dumps(more))
    # A producer is not bothered.
    settings = get_settings().require_queue()
    queues = {name: (q.url, q.dead_letter_url) for name, q in settings.queues.items()}

    with pytest.raises(ConfigurationError) as raised:
        check_dead_letter_urls(options(**queues))

    assert raised.value.message.startswith(variables)
    assert "\n" not in raised.value.message
