"""What MongoDB refuses to the control plane, and how a person corrects it.

A text names databases, collections and rights, but never what MongoDB's own message says: that can
hold a document.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from sqs_broker.errors import ControlPlaneDown, label

#: MongoDB's error codes:
#: https://github.com/mongodb/mongo/blob/master/src/mongo/base/error_codes.yml
UNAUTHORIZED, LOGIN_FAILED = 13, 18
INVALID_NAMESPACE, OTHER_CASE = 73, 13_297
VALIDATION_FAILED, ON_A_VIEW = 121, 166

#: MongoDB's own roles with a right that `readWrite` does not contain.
#: https://www.mongodb.com/docs/manual/reference/built-in-roles/
ROLES = {"collMod": "dbAdmin"}


@dataclass(frozen=True)
class Fault:
    """Something in MongoDB that a person must correct."""

    text: str
    fix: str

    def __str__(self) -> str:
        return f"{self.text}. {self.fix}"


class Refused(OperationFailure):
    """MongoDB answered, and refused a call."""

    def __init__(self, fault: Fault, code: int | None = None) -> None:
        super().__init__(fault.text, code)
        self.fault = fault


def fault_of(exc: OperationFailure, action: str, database: str, collection: str) -> Fault:
    """Why MongoDB refused an action on a collection."""
    name = f"{database}.{collection}"
    match _code(exc):
        case int(code) if code == UNAUTHORIZED:
            return missing_right(action, database, collection)
        case int(code) if code == LOGIN_FAILED:
            return Fault("MongoDB refuses the login", "Correct user and password in the URI.")
        case int(code) if code == VALIDATION_FAILED:
            return Fault(
                f"a validator of {name} refuses the documents of this program",
                f"Remove it: db.runCommand({{collMod: '{collection}', validator: {{}}}}).",
            )
        case int(code) if code == ON_A_VIEW:
            return view(database, collection)
        case int(code) if code == INVALID_NAMESPACE:
            return Fault(
                f"{database!r} is not a valid name of a database",
                "Name another database for the control plane.",
            )
        case int(code) if code == OTHER_CASE:
            return Fault(
                f"a database exists whose name differs from {database!r} only in case",
                "Name another database for the control plane.",
            )
    return Fault(
        f"MongoDB refuses `{action}` on {name} ({label(exc)})",
        "Drop that collection, and it is created again; or name another database for the control "
        "plane.",
    )


def missing_right(action: str, database: str, collection: str) -> Fault:
    """The fault of a user without a right."""
    role = ROLES.get(action, "readWrite")
    return Fault(
        f"this user lacks the right `{action}` on {database}.{collection}",
        f"Grant it; MongoDB's role {role} on {database} contains it.",
    )


def view(database: str, collection: str, kind: str = "view") -> Fault:
    """The fault of a view, or of another kind of collection, that no document can be put into."""
    return Fault(
        f"{database}.{collection} is a {kind}, and this program needs a collection",
        "Drop it, and the collection is created.",
    )


def reason_of(exc: Exception) -> str:
    """Why the control plane does not work, with the fix if it is known. In one line."""
    if isinstance(exc, Refused):
        return str(exc.fault)
    return f"MongoDB is unavailable ({label(exc)})"


@contextmanager
def answering() -> Iterator[None]:
    """Raise ControlPlaneDown, with the reason, for an error of pymongo in the block."""
    try:
        yield
    except PyMongoError as exc:
        raise ControlPlaneDown(reason_of(exc)) from exc


def _code(exc: OperationFailure) -> int | None:
    if isinstance(exc, BulkWriteError) and (errors := exc.details.get("writeErrors")):
        return int(errors[0]["code"])
    return exc.code
