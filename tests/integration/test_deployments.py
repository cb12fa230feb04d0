"""The tests' own deployments of MongoDB: what is done to one has the effect that it has in life."""

from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from tests.deployments import deployment
from tests.deployments.deployment import ARBITER, AWAY, OTHER, SECONDARY, Deployment
from tests.services import wait_until

pytestmark = pytest.mark.slow

#: Seconds for the driver to see what happened.
SEEN = 20

QUICK = {"serverSelectionTimeoutMS": 1_500, "timeoutMS": 3_000}

#: MongoDB's codes.
NOT_AUTHORIZED = 13
WRITES_BLOCKED = 371
NO_MAJORITY_IN_TIME = 64


def insert(client: MongoClient) -> None:
    client.get_default_database()["things"].insert_one({})


def can_insert(client: MongoClient) -> bool:
    try:
        insert(client)
    except PyMongoError:
        return False
    return True


def test_the_others_elect_a_primary_where_one_is_killed(three_nodes: Deployment) -> None:
    killed = three_nodes.wait_for_primary()
    with MongoClient(three_nodes.uri("test", **QUICK)) as client:
        insert(client)

        three_nodes.kill(killed)

        assert three_nodes.wait_for_primary() != killed
        wait_until(lambda: can_insert(client), SEEN, "writes to the new primary")
    assert three_nodes.state(killed) == AWAY


def test_a_primary_that_steps_down_follows_another_one(three_nodes: Deployment) -> None:
    before = three_nodes.wait_for_primary()
    three_nodes.step_down()
    assert three_nodes.wait_for_primary() != before
    assert three_nodes.state(before) == SECONDARY


def test_a_frozen_member_is_replaced_and_catches_up(three_nodes: Deployment) -> None:
    before = three_nodes.wait_for_primary()
    three_nodes.freeze(before)
    assert three_nodes.wait_for_primary() != before
    three_nodes.thaw(before)
    three_nodes.wait_until_whole()


def test_no_majority_acknowledges_while_both_secondaries_are_frozen(
    three_nodes: Deployment,
) -> None:
    three_nodes.wait_for_primary()
    frozen = three_nodes.secondaries
    with MongoClient(three_nodes.uri("test", w="majority", wtimeoutMS=500)) as client:
        insert(client)
        for member in frozen:
            three_nodes.freeze(member)
        with pytest.raises((OperationFailure, AutoReconnect)):
            insert(client)
    assert len(frozen) == 2


def test_a_member_may_come_back_as_a_standalone_that_no_replica_set_client_takes(
    three_nodes: Deployment,
) -> None:
    member = three_nodes.secondaries[0]
    three_nodes.stop(member)

    three_nodes.start(member, as_standalone=True)

    assert three_nodes.state(member) == OTHER
    host = three_nodes.members[member].host
    alone = f"mongodb://{host}/test?replicaSet=rs0&serverSelectionTimeoutMS=500"
    with MongoClient(alone) as client, pytest.raises(ServerSelectionTimeoutError):
        insert(client)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_member_may_come_back_at_another_address(three_nodes: Deployment, name: str) -> None:
    member = three_nodes.wait_for_primary()
    with MongoClient(three_nodes.uri("test", **QUICK)) as client:
        insert(client)
        before = three_nodes.members[member].host

        three_nodes.move(member, name=name)

        three_nodes.wait_until_whole()
        moved = three_nodes.members[member]
        wait_until(lambda: (name, moved.port) in client.nodes, SEEN, "the member where it is now")
        assert before not in {f"{host}:{port}" for host, port in client.nodes}
        assert can_insert(client)


def test_writes_are_blocked_and_taken_again(three_nodes: Deployment) -> None:
    with MongoClient(three_nodes.uri("test")) as client:
        three_nodes.block_writes()
        with pytest.raises(OperationFailure) as refused:
            insert(client)
        three_nodes.block_writes(False)
        insert(client)
    assert refused.value.code == WRITES_BLOCKED


def test_a_command_fails_as_it_was_told_to_and_no_longer(three_nodes: Deployment) -> None:
    with MongoClient(three_nodes.uri("test", retryWrites=False)) as client:
        insert(client)
        with (
            three_nodes.fail_command("insert", errorCode=NO_MAJORITY_IN_TIME),
            pytest.raises(OperationFailure) as failed,
        ):
            insert(client)
        insert(client)
    assert failed.value.code == NO_MAJORITY_IN_TIME


def test_an_arbiter_votes_and_holds_no_data(with_arbiter: Deployment) -> None:
    assert with_arbiter.state(2) == ARBITER
    assert with_arbiter.members[2].host not in with_arbiter.uri("test")
    before = with_arbiter.wait_for_primary()
    with_arbiter.kill(before)
    assert with_arbiter.wait_for_primary() == 1 - before


def test_nobody_writes_without_a_login_nor_without_the_right(secured: Deployment) -> None:
    with (
        MongoClient(secured.uri("test", user=None)) as nobody,
        pytest.raises(OperationFailure) as refused,
    ):
        insert(nobody)
    assert refused.value.code == NOT_AUTHORIZED

    with MongoClient(secured.uri("test")) as application:
        with pytest.raises(OperationFailure) as refused:
            insert(application)
        assert refused.value.code == NOT_AUTHORIZED

        secured.grant("test")
        insert(application)

        secured.revoke("test")
        with pytest.raises(OperationFailure) as refused:
            insert(application)
        assert refused.value.code == NOT_AUTHORIZED


def test_nobody_is_heard_without_tls(secured: Deployment) -> None:
    plain = secured.uri("test", tls=False, **QUICK)
    plain = "&".join(part for part in plain.split("&") if not part.startswith("tlsCAFile"))
    with MongoClient(plain) as client, pytest.raises(ServerSelectionTimeoutError):
        insert(client)


def test_more_arguments_of_mongod_are_heeded(tmp_path: Path) -> None:
    limited = {"arguments": ("--setParameter", "maxTransactionLockRequestTimeoutMillis=7")}
    with deployment.running(tmp_path, **limited) as made:
        told = made.client(0).admin.command(
            "getParameter", 1, maxTransactionLockRequestTimeoutMillis=1
        )
    assert told["maxTransactionLockRequestTimeoutMillis"] == 7


def test_nothing_of_a_deployment_is_left_however_its_block_ends(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError), deployment.running(tmp_path) as made:
        raise ConfigurationError
    assert not any(member.is_running for member in made.members)
