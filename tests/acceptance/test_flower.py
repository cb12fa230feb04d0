"""Flower: who may look, and what it says of the queues."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flower.urls import handlers
from tornado.routing import URLSpec

from tests.acceptance.flower_process import LOGIN, Answer, Flower, flowering, started
from tests.acceptance.worker import Place

#: What anybody may see: that it lives, how it looks, and the way in and out.
OPEN = {"/healthcheck", "/static/(.*)", "/login/?", "/logout", ".*"}
REFUSE_SECONDS = 30
UNREACHABLE = "http://127.0.0.1:9/queue"

GITHUB = {
    "FLOWER_AUTH_PROVIDER": "flower.views.auth.GithubLoginHandler",
    "FLOWER_AUTH": ".*@example.com",
    "FLOWER_OAUTH2_KEY": "our-name",
    "FLOWER_OAUTH2_SECRET": "hunter2-5e0b",
    "FLOWER_OAUTH2_REDIRECT_URI": "http://127.0.0.1/login",
}


def patterns() -> list[str]:
    """The paths of all of Flower's pages, as it has them."""
    return [
        handler.regex.pattern.removesuffix("$") if isinstance(handler, URLSpec) else handler[0]
        for handler in handlers
    ]


def guarded() -> list[str]:
    """A path for each page that is not open to anybody."""
    return [re.sub(r"\(.*?\)", "x", path) for path in patterns() if path not in OPEN]


@pytest.fixture(scope="module")
def flower(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """One Flower for the tests that only look."""
    with flowering(where.environment, tmp_path_factory.mktemp("flower")) as running:
        yield running


def ask(flower: Flower, path: str, login: str | None) -> list[Answer]:
    return [flower.get(path, login), flower.post(path, login)]


# The login


def test_the_pages_that_are_open_are_those_that_tell_nothing(flower: Flower) -> None:
    assert set(patterns()) >= OPEN
    assert flower.get("/healthcheck", login=None) == Answer(200, "OK")


@pytest.mark.parametrize("login", [None, "", ":", "kim:", "kim:wrong", f"{LOGIN}x"])
def test_without_the_login_nothing_is_shown_or_done(flower: Flower, login: str | None) -> None:
    for path in guarded():
        statuses = {answer.status for answer in ask(flower, path, login)}
        # 403: a form without the token that only a page behind the login gives. 405: the page has
        # no such method. Both are said before anybody is asked who they are.
        assert statuses <= {401, 403, 405}, path
        assert 401 in statuses, path


def test_with_the_login_pages_and_metrics_are_shown(flower: Flower) -> None:
    for path in ("/", "/workers", "/tasks", "/broker", "/metrics", "/api/tasks"):
        assert flower.get(path).status == 200, path


def test_the_metrics_have_the_queues_too(flower: Flower, where: Place) -> None:
    lines = flower.get("/metrics").text.splitlines()
    queue = f'messaging_destination_name="{where.queues.name}"'
    assert [line for line in lines if line.startswith("# TYPE flower_")]
    for state in ("visible", "in flight", "delayed"):
        for name in ("sqs_broker_queue_messages", "sqs_broker_queue_dead_letters"):
            assert f'{name}{{{queue},sqs_broker_state="{state}"}} 0.0' in lines
    assert f"sqs_broker_queue_readable{{{queue}}} 1.0" in lines


def test_with_a_provider_every_page_and_the_api_lead_to_its_login(
    where: Place, tmp_path: Path
) -> None:
    with started(where.environment | GITHUB, tmp_path) as flower:
        flower.wait_until_listening()
        for path in guarded():
            statuses = {answer.status for answer in ask(flower, path, login=None)}
            # 403: a form without the token that only a page behind the login gives.
            assert statuses <= {302, 403, 405}, (path, statuses)
        assert flower.get("/login", login=None).status == 302
        assert GITHUB["FLOWER_OAUTH2_SECRET"] not in flower.log_text()


def test_on_this_machine_alone_it_needs_no_login_and_has_no_api(
    where: Place, tmp_path: Path
) -> None:
    with started(where.environment, tmp_path) as flower:
        flower.wait_until_listening()
        assert flower.get("/workers", login=None).status == 200
        assert flower.get("/api/tasks", login=None).status == 401


@pytest.mark.parametrize("way", ["environment", "flag"])
def test_it_listens_beyond_this_machine_only_with_a_login(
    where: Place, tmp_path: Path, way: str
) -> None:
    everywhere = {"FLOWER_ADDRESS": "0.0.0.0"} if way == "environment" else {}
    flags = ["--address=0.0.0.0"] if way == "flag" else []
    opened = {"FLOWER_BASIC_AUTH": "", "FLOWER_UNAUTHENTICATED_API": "true"}

    said = refusal({**where.environment, **everywhere, **opened}, tmp_path, *flags)

    assert "FLOWER_BASIC_AUTH=user:password" in said
    assert "FLOWER_ADDRESS=127.0.0.1" in said


def test_half_a_login_is_refused_in_one_line_that_does_not_show_it(
    where: Place, tmp_path: Path
) -> None:
    said = refusal(dict(where.environment), tmp_path, "--basic_auth=:hunter2")

    assert "FLOWER_BASIC_AUTH" in said
    assert "hunter2" not in said


def test_another_configuration_does_not_open_the_metrics(where: Place, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(f"address = '127.0.0.1'\nbasic_auth = ['{LOGIN}']")

    with started(dict(where.environment), tmp_path, f"--conf={other}") as flower:
        flower.wait_until_listening()
        assert flower.get("/metrics").status == 200
        assert flower.get("/metrics", login=None).status == 401


def test_a_place_where_its_state_cannot_be_kept_is_named(where: Place, tmp_path: Path) -> None:
    nowhere = tmp_path / "not-there" / "flower.db"

    said = refusal(dict(where.environment) | {"FLOWER_DB": str(nowhere)}, tmp_path)

    assert "FLOWER_DB" in said
    assert str(nowhere.parent) in said


def refusal(environment: dict[str, str], directory: Path, *arguments: str) -> str:
    """The one line that Flower says which does not start so."""
    with started(environment, directory, *arguments) as flower:
        assert flower.wait(REFUSE_SECONDS) == 1
        [line] = flower.log_text().strip().splitlines()
        return line


def test_from_the_wheel_it_finds_its_settings_and_its_page_in_any_directory(
    where: Place, tmp_path: Path, site: Path
) -> None:
    environment = dict(where.environment) | {"PYTHONPATH": str(site)}
    with flowering(environment, tmp_path) as flower:
        assert flower.get("/metrics", login=None).status == 401
        assert cells(flower.get("/broker").text, where.queues.name)


# The Broker page


def test_the_broker_page_shows_each_queue_and_its_dead_letters(
    flower: Flower, where: Place
) -> None:
    queues = where.queues
    queues.client.send_message(QueueUrl=queues.url, MessageBody="waits")
    queues.client.send_message(QueueUrl=queues.url, MessageBody="flies")
    queues.client.receive_message(QueueUrl=queues.url, MaxNumberOfMessages=1, VisibilityTimeout=300)
    queues.client.send_message(QueueUrl=queues.url, MessageBody="is not due", DelaySeconds=600)
    queues.client.send_message(QueueUrl=queues.dead_letter_url, MessageBody="is dead")

    page = flower.get("/broker")

    assert page.status == 200
    # Visible, in flight, delayed, and the age of the oldest, which only CloudWatch knows.
    assert cells(page.text, queues.name) == ["1", "1", "1", "-"]
    assert cells(page.text, f"{queues.name}-dlq") == ["1", "0", "0", "-"]
    assert f"dead letters of {queues.name}" in page.text
    assert "this SQS server has none" in page.text
    listed = {
        queue["name"]: queue for queue in flower.get("/api/queues/length").json["active_queues"]
    }
    assert (
        listed[queues.name] | {"messages": 1, "in_flight": 1, "delayed": 1} == listed[queues.name]
    )
    assert listed[f"{queues.name}-dlq"]["dead_letters_of"] == queues.name


def test_a_queue_that_is_not_there_is_named_and_the_others_are_shown(
    where: Place, tmp_path: Path
) -> None:
    gone = f"{where.queues.url}-gone"
    environment = dict(where.environment) | {"AWS_SQS_DLQ_URL": gone}
    with flowering(environment, tmp_path) as flower:
        page = flower.get("/broker")

    assert cells(page.text, f"{where.queues.name}-gone") == ["-"] * 4
    assert "there is no such queue" in page.text
    assert "-" not in cells(page.text, where.queues.name)[:3]


def test_while_sqs_is_away_the_broker_page_says_so_and_flower_answers(
    where: Place, tmp_path: Path
) -> None:
    environment = dict(where.environment) | {"AWS_ENDPOINT_URL": UNREACHABLE}
    with flowering(environment, tmp_path) as flower:
        page = flower.get("/broker")
        assert flower.get("/healthcheck").status == 200

    assert page.status == 200
    assert cells(page.text, where.queues.name) == ["-"] * 4
    assert "got no answer" in page.text


def cells(page: str, queue: str) -> list[str]:
    """The figures in a queue's row, without its name and its form."""
    [row] = re.findall(rf'<tr id="{queue}">(.*?)</tr>', page, re.DOTALL)
    return [cell.strip() for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)][1:5]
