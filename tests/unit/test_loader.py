"""Where Flower may listen, and behind what. tests/acceptance runs it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from app.errors import SettingsError
from app.loader import check_flower, config_file, serves_flower
from sqs_broker.machine.address import is_loopback
from sqs_broker.tools.flower.pages import MetricsBehindLogin

OURS = [dict, MetricsBehindLogin]
BEYOND = ["", "0.0.0.0", "::", "10.0.0.7", "192.168.1.1", "fe80::1", "flower.example.com"]
WITHIN = ["127.0.0.1", "127.8.8.8", "::1", "localhost"]


@pytest.fixture
def options(tmp_path: Path) -> Any:
    """Flower's options where nothing was set but a place for its state."""
    return SimpleNamespace(
        address="127.0.0.1",
        unix_socket="",
        basic_auth=[],
        auth="",
        auth_provider=None,
        conf="flowerconfig.py",
        db=str(tmp_path / "flower.db"),
        persistent=True,
    )


def fault_of(options: Any, handlers: list[type] = OURS) -> str:
    with pytest.raises(SettingsError) as raised:
        check_flower(options, handlers)
    assert "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize("address", WITHIN)
def test_within_this_machine_it_may_listen_without_a_login(options: Any, address: str) -> None:
    assert is_loopback(address)
    options.address = address
    check_flower(options, OURS)


@pytest.mark.parametrize("address", BEYOND)
def test_beyond_it_a_login_is_asked_for_by_the_name_of_the_variable(
    options: Any, address: str
) -> None:
    assert not is_loopback(address)
    options.address = address
    fault = fault_of(options)
    assert (address or "every address") in fault
    assert "FLOWER_BASIC_AUTH=user:password" in fault
    assert "FLOWER_ADDRESS=127.0.0.1" in fault


@pytest.mark.parametrize("address", BEYOND)
@pytest.mark.parametrize(
    "login",
    [
        {"basic_auth": ["kim:hunter2"]},
        {"basic_auth": ["kim:hunter2", "lee:a:b"]},
        {"auth": ".*@example.com", "auth_provider": "flower.views.auth.GithubLoginHandler"},
    ],
    ids=["password", "passwords", "provider"],
)
def test_with_a_login_it_may_listen_anywhere(
    options: Any, address: str, login: dict[str, Any]
) -> None:
    vars(options).update(login, address=address)
    check_flower(options, OURS)


def test_a_socket_file_is_of_this_machine(options: Any) -> None:
    options.address, options.unix_socket = "", "flower.sock"
    check_flower(options, OURS)


@pytest.mark.parametrize("login", ["", ":", "kim", "kim:", ":hunter2"])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_half_a_login_is_none_and_never_shown(options: Any, login: str, address: str) -> None:
    # With an empty one among them, Flower lets in whoever sends an empty one.
    options.address, options.basic_auth = address, ["lee:hunter2", login]
    fault = fault_of(options)
    assert fault.startswith("FLOWER_BASIC_AUTH: ")
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    ("given", "missing"), [("auth", "auth_provider"), ("auth_provider", "auth")]
)
def test_a_provider_and_whom_it_lets_in_belong_together(
    options: Any, given: str, missing: str
) -> None:
    # With the provider alone, Flower asks nobody.
    setattr(options, given, "x")
    fault = fault_of(options)
    assert fault.startswith(f"FLOWER_{given.upper()} needs FLOWER_{missing.upper()}")


def test_a_configuration_that_leaves_the_metrics_open_is_named(options: Any) -> None:
    options.conf = "other.py"
    assert "other.py" in fault_of(options, [dict])


def test_a_place_where_no_state_can_be_kept_is_named(options: Any, tmp_path: Path) -> None:
    options.db = str(tmp_path / "not-there" / "flower.db")
    fault = fault_of(options)
    assert fault.startswith("FLOWER_DB: ")
    assert str(tmp_path / "not-there") in fault
    options.persistent = False
    check_flower(options, OURS)


@pytest.mark.parametrize("command", ["flower", "worker"])
def test_only_the_process_that_serves_flower_is_asked(command: str) -> None:
    seen = []
    group = click.Group("celery", callback=lambda: seen.append(serves_flower()))
    group.add_command(click.Command(command, callback=lambda: seen.append(serves_flower())))
    group.main([command], standalone_mode=False)
    assert seen == [command == "flower"] * 2
    assert not serves_flower()


@pytest.mark.parametrize("name", ["celeryconfig.py", "flowerconfig.py"])
def test_a_configuration_is_found_wherever_a_process_starts(name: str) -> None:
    assert config_file(name).is_file()
    assert config_file(name).is_absolute()
