"""Each option of kombu's SQS transport is honoured or refused by name, and docs/migrate.md says
which."""

import ast
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from sqs_broker import install
from sqs_broker.errors import ConfigurationError, PublishError
from sqs_broker.options import (
    NAMES,
    OWN_CLIENT_CONFIG,
    QUEUE_NAMES,
    Options,
    QueueAddress,
    Role,
)
from sqs_broker.rules.stock_options import OF_QUEUE, OF_TRANSPORT, RETRY_POLICY
from sqs_broker.testing import FakeSqs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrate.md").read_text()
URL = "https://sqs.test/jobs"
LEAST: dict[str, Any] = {"region": "us-east-1", "predefined_queues": {"jobs": {"url": URL}}}


def source(module: str) -> ast.Module:
    """A module of kombu, as it is installed."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text())


def texts_read_of(tree: ast.AST, *holders: str) -> Iterator[str]:
    """The texts by which a module reads a mapping: `.get("x")`, `["x"]` and `"x" in`."""
    for node in ast.walk(tree):
        holder, key = None, None
        match node:
            case ast.Call(func=ast.Attribute(value=holder, attr="get"), args=[key, *_]):
                pass
            case ast.Subscript(value=holder, slice=key):
                pass
            case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[holder]):
                pass
        is_one = holder is not None and ast.unparse(holder).rpartition(".")[2] in holders
        if is_one and isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value


SQS = source("kombu.transport.SQS")


def of_kombu() -> set[str]:
    """All options of the transport."""
    found = {
        name
        for module in ("kombu.transport.SQS.SNS", "kombu.transport.virtual.base")
        for name in texts_read_of(source(module), "transport_options", "topts")
    }
    found |= set(texts_read_of(SQS, "transport_options"))
    found |= set(texts_read_of(source("kombu.connection"), "transport_options", "transport_opts"))
    for node in ast.walk(source("kombu.transport.virtual.base")):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == (
            "from_transport_options"
        ):
            found |= set(ast.literal_eval(node.value))
    return found


def of_a_queue() -> set[str]:
    """All keys of a queue in `predefined_queues`."""
    return set(texts_read_of(SQS, "q", "queue_config"))


def of_a_message() -> set[str]:
    """What kombu reads of the properties of a message that it sends."""
    put, delay = (
        next(node for node in ast.walk(SQS) if getattr(node, "name", None) == name)
        for name in ("_put", "_resolve_delay_seconds")
    )
    loops = [node.iter for node in ast.walk(delay) if isinstance(node, ast.For)]
    spellings = {name for loop in loops for name in ast.literal_eval(loop)}
    read = spellings | set(texts_read_of(put, "message['properties']"))
    return read - {"delivery_tag"}  # It is of a message that was received.


def rows(first_column: str) -> dict[str, str]:
    """A table of the page: what becomes of each option."""
    table = PAGE.partition(f"| {first_column} | here |\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", table, re.MULTILINE))


def test_the_source_of_kombu_is_read() -> None:
    assert {"polling_interval", "sts_role_arn", "client-config", "max_retries"} <= of_kombu()
    assert {"url", "access_key_id", "backoff_policy"} <= of_a_queue()
    assert {"MessageGroupId", "DelaySeconds"} <= of_a_message()


@pytest.mark.parametrize(
    ("table", "options"),
    [("option", of_kombu()), ("key", of_a_queue()), ("option of the call", of_a_message())],
    ids=["transport", "queue", "call"],
)
def test_no_option_of_kombu_is_missing_from_the_page(table: str, options: set[str]) -> None:
    assert options - set(rows(table)) == set()


@pytest.mark.parametrize(
    ("table", "kept", "refused"),
    [("option", NAMES, OF_TRANSPORT), ("key", QUEUE_NAMES, OF_QUEUE)],
    ids=["transport", "queue"],
)
def test_what_the_page_says_of_an_option_is_so(
    table: str, kept: frozenset[str], refused: Mapping[str, Any]
) -> None:
    said = rows(table)
    assert {name for name, text in said.items() if text.startswith("Kept")} == kept & said.keys()
    assert {name for name, text in said.items() if text.startswith("Refused")} == set(refused)
    # The value in brackets is accepted.
    for name, text in said.items():
        values = re.findall(r"^Refused \(`(.*?)`\)", text)
        assert values == (
            [repr(v).replace("'", '"') for v in refused[name].harmless] if name in refused else []
        )


@pytest.mark.parametrize("name", sorted(OF_TRANSPORT))
def test_an_option_that_the_broker_does_not_have_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{name}' is not supported. .*[.]$") as raised:
        Options.read(LEAST | {name: "hunter2"})
    assert "hunter2" not in raised.value.message


@pytest.mark.parametrize("name", sorted(OF_TRANSPORT))
def test_it_is_accepted_with_a_value_that_asks_for_what_the_broker_does(name: str) -> None:
    for value in (None, *OF_TRANSPORT[name].harmless):
        assert Options.read(LEAST | {name: value}) == Options.read(LEAST)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"visibilty_timeout": 60}, r"'visibilty_timeout'; did you mean 'visibility_timeout'\?"),
        ({"credentials": {"aws_acces_key_id": "k"}}, r"did you mean 'aws_access_key_id'\?"),
        ({"zzz": 1}, r"no option 'zzz'. It has: backoff_base, .*, wait_time_seconds\."),
        ({"sts_token_timeout": 900}, "`sts_token_timeout` needs `sts_role_arn`"),
        ({"sts_role_arn": "r", "sts_token_timeout": "x"}, "`sts_token_timeout` must be a number"),
        ({"sts_role_arn": "r", "sts_token_buffer_time": 900}, "below `sts_token_timeout`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_misspelt_or_lonely_option_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Options.read(LEAST | given)


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ({"backoff_policy": {1: 10}}, "queue 'jobs': 'backoff_policy' is not supported"),
        ({"backoff_tasks": ["a"]}, "queue 'jobs': 'backoff_tasks' is not supported"),
        ({"dead_leter_url": "u"}, r"'dead_leter_url'; did you mean 'dead_letter_url'\?"),
        ({"access_key_id": "k"}, "`access_key_id` and `secret_access_key` belong together"),
        ({"url": f"{URL}.fifo"}, "Queue 'jobs' is FIFO"),
        ({"dead_letter_url": f"{URL}.fifo"}, "Queue 'jobs' is FIFO"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_key_of_a_queue_is_honoured_or_named(address: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Options.read(LEAST | {"predefined_queues": {"jobs": {"url": URL} | address}})


@pytest.mark.parametrize("name", sorted(OWN_CLIENT_CONFIG))
def test_what_the_deadlines_need_of_a_client_is_not_the_project_s(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"in `client-config`, '{name}' is not supported"):
        Options.read(LEAST | {"client-config": {name: 1}})


def test_what_is_kept_arrives() -> None:
    own = {"access_key_id": "k", "secret_access_key": "hunter2", "region": "eu-west-1"}
    options = Options.read(
        {
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": URL, "dead_letter_url": f"{URL}-dlq"} | own},
            "client-config": {"proxies": {}},
            "sts_role_arn": "arn:aws:iam::1:role/r",
            "sts_token_timeout": 1_800,
            "sts_token_buffer_time": 60,
        }
    )
    key = {"aws_access_key_id": "k", "aws_secret_access_key": "hunter2"}
    assert options.queues["jobs"] == QueueAddress(URL, f"{URL}-dlq", key, "eu-west-1")
    assert options.client_config == {"proxies": {}}
    assert options.role == Role("arn:aws:iam::1:role/r", 1_800, 60)
    for url in (URL, f"{URL}-dlq"):
        assert options.of_queue(url).credentials == key
        assert options.of_queue(url).region == "eu-west-1"
    assert "hunter2" not in repr(options)


# At the connection


@pytest.fixture
def app(fake: FakeSqs) -> Iterator[Celery]:
    """An app on this broker."""
    url = fake.create_queue("jobs")
    app = Celery("tests", set_as_current=False)
    install(app)
    app.conf.update(
        broker_transport_options=fake.transport_options()
        | {"predefined_queues": {"jobs": {"url": url}}},
        task_default_queue="jobs",
        task_create_missing_queues=False,
    )
    yield app
    app.close()


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("sqs://AKIA:hunter2@", "broker_url has credentials. Set `credentials`"),
        ("sqs://localhost:9324", "broker_url names a host. Set `endpoint_url`"),
        ("sqs://queue.example", "broker_url names a host. Set `endpoint_url`"),
    ],
)
def test_what_a_broker_url_carries_is_named(app: Celery, url: str, named: str) -> None:
    with (
        pytest.raises(ConfigurationError, match=named) as raised,
        app.connection_for_write(url) as connection,
    ):
        connection.default_channel  # noqa: B018 - it connects
    assert "hunter2" not in raised.value.message


def test_the_retry_policy_of_kombu_is_no_option_of_the_project(app: Celery) -> None:
    policy = dict.fromkeys(RETRY_POLICY - {"retry_errors"}, 1) | {"retry_errors": ()}
    with app.connection_for_write(transport_options=policy) as connection:
        connection.default_channel  # noqa: B018 - it connects
    app.send_task("t", retry=True, retry_policy=policy)


def test_a_misspelt_option_is_an_error_of_the_call(app: Celery, fake: FakeSqs) -> None:
    app.conf.broker_transport_options |= {"publish_timout": 1}
    with pytest.raises(ConfigurationError, match="did you mean 'publish_timeout'"):
        app.send_task("t")
    assert fake.asked("SendMessage") == []


def test_a_text_in_place_of_a_number_is_an_error_of_the_call(
    fake: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    app = Celery("three lines", set_as_current=False)
    install(app)
    app.conf.broker_transport_options = fake.transport_options(visibility_timeout="60")
    with pytest.raises(ConfigurationError, match="`visibility_timeout` must be a whole number"):
        app.send_task("t")
    app.close()
    # It is the only one: the defaults of `install` do without that number.
    assert caplog.records == []


# At the call


@pytest.fixture
def two_queues(app: Celery, fake: FakeSqs) -> Celery:
    """An app with a queue on a direct exchange, and one on a topic."""
    urls = {"jobs": fake.create_queue("one"), "mail": fake.create_queue("two")}
    app.conf.broker_transport_options["predefined_queues"] = {
        n: {"url": u} for n, u in urls.items()
    }
    app.conf.task_queues = [
        Queue("jobs", Exchange(""), routing_key="jobs.key"),
        Queue("mail", Exchange("post", type="topic"), routing_key="mail.#"),
    ]
    return app


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"exchange": "x"}, "`exchange` names no queue: .* to the queue 'jobs' in any case"),
        ({"routing_key": "x"}, "`routing_key` names no queue: .* to the queue 'jobs'"),
        ({"queue": "jobs", "routing_key": "mail"}, "`routing_key` names no queue"),
        ({"exchange": "x", "routing_key": "y"}, "No queue is bound to 'x' with key 'y'"),
        ({"queue": "mail", "routing_key": "x"}, "No queue is bound to 'post' with key 'x'"),
        ({"priority": 9}, "SQS has no `priority`"),
        ({"DelaySeconds": 901}, "`DelaySeconds` must be"),
        ({"contdown": 5}, "no option 'contdown' of a call; did you mean 'countdown'"),
        ({"expire": 5}, "did you mean 'expires'"),
        ({"message_group_id": "shop-7"}, "did you mean 'MessageGroupId'"),
        ({"MessageGroupID": "shop-7"}, "did you mean 'MessageGroupId'"),
        ({"MessageAttributes": {}}, "did you mean 'message_attributes'"),
        ({"delaySeconds": 5}, "did you mean '(DelaySeconds|delay_seconds)'"),
        ({"message_attributes": {"shop": "7"}}, "`message_attributes` must be"),
        ({"message_attributes": [1]}, "`message_attributes` must be"),
    ],
    ids=repr,
)
def test_an_option_without_effect_is_refused_at_the_call(
    two_queues: Celery, fake: FakeSqs, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(PublishError, match=named):
        two_queues.send_task("t", **options)
    assert fake.asked("SendMessage") == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"routing_key": "jobs"},
        {"routing_key": "jobs.key"},
        {"queue": "mail", "routing_key": "mail.today"},
        {"priority": 0},
        # A property of AMQP, one of the project, and a stamp.
        {"user_id": "shop"},
        {"shop": 7},
        {"stamped_headers": ["expire"], "expire": "never"},
        {"message_attributes": {"shop": {"DataType": "String", "StringValue": "7"}}},
    ],
    ids=repr,
)
def test_an_option_that_says_what_happens_anyway_is_accepted(
    two_queues: Celery, fake: FakeSqs, options: dict[str, Any]
) -> None:
    two_queues.send_task("t", **options)
    assert len(fake.asked("SendMessage")) == 1


def test_the_delay_and_the_group_of_a_call_reach_sqs(app: Celery, fake: FakeSqs) -> None:
    app.send_task("t", DelaySeconds=7, MessageGroupId="shop-7")
    [call] = fake.asked("SendMessage")
    assert (call["DelaySeconds"], call["MessageGroupId"]) == (7, "shop-7")


def test_a_call_that_asks_for_no_delay_has_that_of_the_queue(app: Celery, fake: FakeSqs) -> None:
    app.send_task("t")
    app.send_task("t", DelaySeconds=0)
    of_the_queue, none = fake.asked("SendMessage")
    assert "DelaySeconds" not in of_the_queue
    assert none["DelaySeconds"] == 0


def test_a_route_may_name_the_group(app: Celery, fake: FakeSqs) -> None:
    app.conf.task_routes = {"t": {"queue": "jobs", "MessageGroupId": "shop-7"}}
    app.send_task("t")
    [call] = fake.asked("SendMessage")
    assert call["MessageGroupId"] == "shop-7"
