"""The client of this process: kept while it knows a primary, replaced if it finds none."""

from collections.abc import Iterator
from typing import Any

import pytest
from mongoengine import get_connection

from app import models
from app.settings import get_settings


class Description:
    """What a client knows of its servers, as far as it matters."""

    def __init__(self, *, has_primary: bool) -> None:
        self._has_primary = has_primary
        self.looks = 0

    def has_writable_server(self) -> bool:
        self.looks += 1
        return self._has_primary


class Client:
    """A client that is told what it knows."""

    def __init__(self) -> None:
        self.topology_description = Description(has_primary=True)

    def close(self) -> None: ...
    def __getitem__(self, name: str) -> Any: ...


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("MONGO_URI", "mongodb://127.0.0.1:1/test")
    monkeypatch.setattr(models, "open_client", lambda *_, **__: Client())
    monkeypatch.setattr(models, "PATIENCE", 0.0)
    get_settings.cache_clear()
    models.disconnect()
    models.connect()
    made: Client = get_connection()
    yield made
    models.disconnect()
    get_settings.cache_clear()


def test_a_client_that_knows_a_primary_is_kept_and_not_asked_again(client: Client) -> None:
    assert all(models.connect() is client for _ in range(3))
    assert client.topology_description.looks == 1


def test_a_client_that_has_lost_its_primary_is_replaced(client: Client) -> None:
    assert models.connect() is client
    client.topology_description = Description(has_primary=False)
    assert models.connect() is not client


def test_a_client_that_finds_another_primary_is_kept(client: Client) -> None:
    assert models.connect() is client
    client.topology_description = Description(has_primary=True)
    assert models.connect() is client
