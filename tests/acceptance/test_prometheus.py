"""A real Prometheus reads a worker and Flower: each expression of the dashboard and of the alerts
finds what they publish."""

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devstack import ports
from devstack.process import Process
from infra import grafana
from sqs_broker.observers import instruments as of
from sqs_broker.observers.instruments import ALL, Instrument
from tests.acceptance.flower_process import LOGIN, flowering
from tests.acceptance.test_worker_prometheus import registration
from tests.acceptance.worker import Place, workers
from tests.services import wait_until

#: `make prometheus` gets it; it is in Debian's package of this name.
PROMETHEUS = shutil.which("prometheus")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not on this machine"),
]

#: Seconds that nothing here comes near to.
DEADLINE = 60

RULES = Path(__file__).parents[2] / "deploy/prometheus/alerts.yml"

#: What nobody does here: no series of these begins.
ABSENT = {
    of.SENT, of.DISCARDED, of.RETRIED, of.RELEASED, of.POSTPONED, of.LOST, of.PAUSED, of.QUEUE_AGE,
}  # fmt: skip


@pytest.fixture(scope="module")
def prometheus(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that reads a worker and Flower, which have handled messages."""
    directory, port = tmp_path_factory.mktemp("prometheus"), ports.preferred_or_any(None)
    with workers(directory) as start_worker, flowering(where.environment, directory) as flower:
        page = ports.preferred_or_any(None)
        start_worker(dict(where.environment) | {"WORKER_METRICS_PORT": str(page)})
        for body in (*map(registration, range(10)), registration(1, "other"), "no message"):
            where.queues.client.send_message(QueueUrl=where.queues.url, MessageBody=body)
        user, _, password = LOGIN.partition(":")
        jobs = {"workers": f"{ports.HOST}:{page}", "queues": flower.url.removeprefix("http://")}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {
                    "job_name": job,
                    "static_configs": [{"targets": [target]}],
                    "basic_auth": {"username": user, "password": password},
                }
                for job, target in jobs.items()
            ],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            str(PROMETHEUS), f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data", f"--web.listen-address={ports.HOST}:{port}",
        ]  # fmt: skip
        log = directory / "prometheus.log"
        with Process("prometheus", command, log=log, grace=5, directory=directory) as process:
            process.wait_until_listening(port, DEADLINE)
            address = f"http://{ports.HOST}:{port}"
            wait_until(lambda: is_ready(address), DEADLINE, "a Prometheus that is ready")
            yield address


def is_ready(prometheus: str) -> bool:
    """Whether it answers. It listens before it has read its storage, and refuses until then."""
    try:
        ask(prometheus, "query", query="1")
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return False
    return True


def ask(prometheus: str, path: str, **fields: str) -> Any:
    """What Prometheus's API answers. It refuses an expression that it cannot evaluate."""
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=DEADLINE) as answer:
        return json.load(answer)["data"]


def found(prometheus: str, expression: str) -> list[Any]:
    series: list[Any] = ask(prometheus, "query", query=expression)["result"]
    return series


def as_grafana_asks(expression: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$queue", ".*")


PANELS = {each["title"]: each for each in grafana.dashboard()["panels"] if each["type"] != "row"}


@pytest.mark.parametrize("instrument", ALL, ids=[each.name for each in ALL])
def test_each_panel_of_the_dashboard_draws_what_is_published(
    prometheus: str, instrument: Instrument
) -> None:
    expressions = [
        as_grafana_asks(target["expr"]) for target in PANELS[instrument.prometheus]["targets"]
    ]
    if instrument in ABSENT:
        assert [found(prometheus, each) for each in expressions] == [[]] * len(expressions)
        return
    for each in expressions:
        # A rate needs two looks.
        wait_until(lambda each=each: bool(found(prometheus, each)), DEADLINE, each)


def test_each_rule_is_evaluated_and_the_dead_letters_are_alerted(prometheus: str) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = ask(prometheus, "rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts() -> set[str]:
        return {each["labels"]["alertname"] for each in ask(prometheus, "alerts")["alerts"]}

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()), DEADLINE, "all rules")
    assert {rule.get("lastError", "") for rule in rules()} == {""}
    wait_until(lambda: "DeadLetters" in alerts(), DEADLINE, "the alert")


def test_the_list_of_queues_in_the_dashboard_is_theirs(prometheus: str, where: Place) -> None:
    (variable,) = [
        each for each in grafana.dashboard()["templating"]["list"] if each["type"] == "query"
    ]
    # Grafana's `label_values(metric, label)` asks Prometheus so.
    metric, _, label = (
        variable["query"]["query"].partition("(")[2].rpartition(")")[0].rpartition(", ")
    )
    names = ask(prometheus, f"label/{label}/values", **{"match[]": metric})
    assert where.queues.name in names
