"""`/metrics` of a worker: Prometheus can read it, and nobody who may not."""

import base64
import logging
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sqs_broker.errors import ConfigurationError
from sqs_broker.observers import instruments as of
from sqs_broker.observers.endpoint import Endpoint
from sqs_broker.observers.figures import Figures, Sample
from sqs_broker.observers.instruments import ALL, Kind, prometheus
from sqs_broker.options import MetricsOptions
from tests.services import wait_until

#: Seconds that nothing here comes near to.
DEADLINE = 30

LOGIN = "prom:s3cret"


@pytest.fixture
def figures() -> Figures:
    return Figures()


Serve = Callable[..., str]


@pytest.fixture
def serve(figures: Figures) -> Iterator[Serve]:
    """Serves the figures, and returns the address of the page."""
    made: list[Endpoint] = []

    def start(port: int = 0, login: str | None = None) -> str:
        endpoint = Endpoint(
            figures.samples, port=port, address="127.0.0.1", login=login, poll_interval=0.01
        )
        made.append(endpoint)
        endpoint.start()
        wait_until(lambda: endpoint.port is not None, DEADLINE, "the port")
        return f"http://127.0.0.1:{endpoint.port}/metrics"

    yield start
    for endpoint in made:
        endpoint.close()


def get(url: str, login: str | None = None) -> str:
    request = urllib.request.Request(url)
    if login is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=DEADLINE) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text: str = answer.read().decode()
        return text


def refused(url: str, login: str | None = None) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url, login)
    caught.value.close()
    return caught.value.code


def test_prometheus_reads_each_figure_under_its_name(serve: Serve, figures: Figures) -> None:
    url = serve()
    stored = [each for each in ALL if each.kind is not Kind.GAUGE and each is not of.CONTROL_LOST]
    for instrument in stored:
        labels = tuple("x" for _ in instrument.labels)
        if instrument.kind is Kind.COUNTER:
            figures.add(instrument, labels, 3)
        else:
            figures.record(instrument, labels, 3)
    families = {family.name: family for family in text_string_to_metric_families(get(url))}
    assert set(families) == {each.prometheus.removesuffix("_total") for each in stored}
    for instrument in stored:
        family = families[instrument.prometheus.removesuffix("_total")]
        assert family.documentation == instrument.what
        assert family.type == instrument.kind.value
        names = {prometheus(label) for label in instrument.labels}
        assert all(set(sample.labels) - {"le"} == names for sample in family.samples)


def test_a_bucket_counts_all_values_up_to_its_bound(serve: Serve, figures: Figures) -> None:
    url = serve()
    for value in (1, 3, 3, 99):
        figures.record(of.ATTEMPT, ("jobs", "done"), value)
    (family,) = text_string_to_metric_families(get(url))
    found = {each.labels.get("le", each.name[-5:]): each.value for each in family.samples}
    assert found == {
        "1.0": 1, "2.0": 1, "3.0": 3, "5.0": 3, "10.0": 3, "+Inf": 4, "count": 4, "s_sum": 106,
    }  # fmt: skip


def test_a_gauge_is_what_it_was_when_it_was_asked_for() -> None:
    depth = iter((3, 0))
    endpoint = Endpoint(
        lambda: [Sample(of.WINDOW, (), next(depth))],
        port=0,
        address="127.0.0.1",
        poll_interval=0.01,
    )
    endpoint.start()
    wait_until(lambda: endpoint.port is not None, DEADLINE, "the port")
    url = f"http://127.0.0.1:{endpoint.port}/metrics"
    try:
        assert [get(url).splitlines()[-1] for _ in range(2)] == [
            "sqs_broker_window 3.0",
            "sqs_broker_window 0.0",
        ]
    finally:
        endpoint.close()


def test_nothing_but_the_page_is_served(serve: Serve) -> None:
    assert refused(serve().removesuffix("/metrics") + "/") == 404


@pytest.mark.parametrize("given", [None, "prom:wrong", "prom", "", "Prom:s3cret"])
def test_without_the_login_nobody_reads_it(serve: Serve, given: str | None) -> None:
    assert refused(serve(login=LOGIN), given) == 401


def test_with_the_login_it_is_read(serve: Serve, figures: Figures) -> None:
    figures.add(of.SENT, ("jobs",))
    assert "messaging_client_sent_messages_total" in get(serve(login=LOGIN), LOGIN)


def test_a_port_that_is_taken_is_tried_again_until_it_is_free(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with caplog.at_level(logging.WARNING):
        endpoint = Endpoint(
            list, port=port, address="127.0.0.1", retry_pause=0.01, poll_interval=0.01
        )
        endpoint.start()
        wait_until(lambda: bool(caplog.records), DEADLINE, "the line")
    taken.close()
    wait_until(lambda: endpoint.port == port, DEADLINE, "the port")
    endpoint.close()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.__dict__["event"] for record in warnings] == ["metrics.unserved"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_does_not_hold_the_port() -> None:
    endpoint = Endpoint(list, port=0, address="127.0.0.1", poll_interval=0.01)
    endpoint.start()
    wait_until(lambda: endpoint.port is not None, DEADLINE, "the port")
    assert endpoint.port is not None
    assert is_open(endpoint.port)
    wait, go_on = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(go_on)
        os.read(wait, 1)  # Until the parent closes its end.
        os._exit(0)
    os.close(wait)
    try:
        port = endpoint.port
        endpoint.close()
        wait_until(lambda: not is_open(port), 10, "a closed port")
    finally:
        os.close(go_on)
        os.waitpid(pid, 0)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "10.0.0.7", "worker.example.com"])
def test_beyond_this_machine_a_login_is_required(address: str) -> None:
    with pytest.raises(ConfigurationError, match="login"):
        MetricsOptions.read({"port": 9464, "address": address})
    assert MetricsOptions.read({"port": 9464, "address": address, "login": LOGIN}).login == LOGIN


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_within_this_machine_none_is(address: str) -> None:
    assert MetricsOptions.read({"port": 9464, "address": address}).port == 9464


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"port": 0}, "port"),
        ({"port": 65_536}, "port"),
        ({"port": True}, "port"),
        ({"port": "9464"}, "port"),
        ({"port": 9464, "login": "prom"}, "login"),
        ({"port": 9464, "login": ":s3cret"}, "login"),
        ({"prot": 9464}, "prot"),
    ],
)
def test_a_wrong_option_is_named_and_no_login_is_shown(
    given: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        MetricsOptions.read(given)
    assert "s3cret" not in str(caught.value)


def test_the_login_is_not_shown() -> None:
    assert "s3cret" not in repr(MetricsOptions(9464, login=LOGIN))
