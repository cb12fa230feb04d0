"""What the user of a MongoDB client may do there, as MongoDB says it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import MongoClient


class Rights:
    """The rights of a user. Somebody who needs no login has all."""

    def __init__(self, privileges: Sequence[Mapping[str, Any]] | None) -> None:
        self._privileges = privileges

    @classmethod
    def of(cls, client: MongoClient[dict[str, Any]]) -> "Rights":
        """The rights of the client's user. Raises pymongo's errors.

        https://www.mongodb.com/docs/manual/reference/command/connectionStatus/
        """
        answer = client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
        if not answer["authenticatedUsers"]:
            return cls(None)
        return cls(answer.get("authenticatedUserPrivileges", ()))

    def allow(self, action: str, database: str, collection: str) -> bool:
        """Whether the user may do this. A `collection` of "" is the database itself."""
        return self._privileges is None or any(
            action in privilege["actions"]
            and _contains(privilege["resource"], database, collection)
            for privilege in self._privileges
        )

    def missing(self, database: str, needed: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
        """The pairs of a collection and an action that the user lacks, of those that are needed."""
        return [
            (collection, action)
            for collection, actions in needed.items()
            for action in actions
            if not self.allow(action, database, collection)
        ]


def _contains(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    """Whether a resource contains a collection. An empty name in it is any name.

    https://www.mongodb.com/docs/manual/reference/resource-document/
    """
    if resource.get("anyResource"):
        return True
    if "db" not in resource:
        return False  # The cluster.
    return resource["db"] in ("", database) and resource["collection"] in ("", collection)
