"""ControlOptions: where the control plane lives, and which of Celery's names are its own."""

import pytest
from pydantic import SecretStr

from sqs_broker.errors import ConfigurationError
from sqs_broker.options import ControlOptions, Kind, Options

URI = "mongodb://user:marker-password@127.0.0.1/registrations"


@pytest.mark.parametrize("name", ["databse", "uri"])
def test_an_option_that_is_unknown_is_an_error_that_names_the_known(name: str) -> None:
    with pytest.raises(ConfigurationError, match="database_uri, event_exchange"):
        ControlOptions.read({name: "mongodb://127.0.0.1/control"})


@pytest.mark.parametrize("uri", [URI, SecretStr(URI)])
def test_the_address_is_read_and_never_shown(uri: object) -> None:
    options = ControlOptions.read({"database_uri": uri})
    assert options.require_uri() == URI
    assert "marker-password" not in repr(options)


def test_without_an_address_the_error_says_how_to_set_it() -> None:
    options = ControlOptions.read({"how_to_set": "Set THIS."})
    with pytest.raises(ConfigurationError, match=r"go through MongoDB\. Set THIS\."):
        options.require_uri()


@pytest.mark.parametrize(
    ("exchange", "kind"),
    [
        ("celeryev", Kind.EVENTS),
        ("celery.pidbox", Kind.COMMANDS),
        ("reply.celery.pidbox", Kind.REPLIES),
        ("", None),
        ("celery", None),
        ("other.pidbox", None),
    ],
)
def test_an_exchange_is_known_by_its_name(exchange: str, kind: Kind | None) -> None:
    assert ControlOptions().kind(exchange) is kind


@pytest.mark.parametrize(
    ("queue", "is_ours"),
    [
        ("celeryev.9b2f", True),
        ("one@host.celery.pidbox", True),
        ("9b2f.reply.celery.pidbox", True),
        ("celeryev", False),
        ("celery", False),
        ("celery.pidbox", False),
        ("one@host.other.pidbox", False),
        ("jobs", False),
    ],
)
def test_only_celerys_own_queues_are_the_control_planes(queue: str, is_ours: bool) -> None:
    assert ControlOptions().owns_queue(queue) is is_ours


def test_the_names_are_configured_as_celery_configures_them() -> None:
    options = ControlOptions.read(
        {"event_exchange": "ev", "event_queue_prefix": "ev", "control_exchange": "mine"}
    )
    assert options.kind("ev") is Kind.EVENTS
    assert options.kind("mine.pidbox") is Kind.COMMANDS
    assert options.owns_queue("ev.1")
    assert not options.owns_queue("celeryev.1")


def test_the_broker_reads_it_as_one_of_its_options() -> None:
    given = {"region": "r", "predefined_queues": {"jobs": {"url": "u"}}, "control": {}}
    assert Options.read(given).control == ControlOptions()
