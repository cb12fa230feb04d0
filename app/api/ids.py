"""The ids of messages that the API sends: a repeat of a request has the same id.

An id begins with a digest of the name of its API key, so each key has ids of its own, and a key
can be asked which ids are its own. The rest is a digest of what identifies the registration. An id
is safe in a URL and holds no personal data.
"""

import re
import secrets
from functools import lru_cache
from hashlib import sha256

from app.messages import Registration

#: Hexadecimal digits of the digest of a key's name, and of the rest.
OWNER, REST = 8, 32

PATTERN = re.compile(rf"[0-9a-f]{{{OWNER + REST}}}")

#: What a message is. Two messages of different kinds never have the same id.
REGISTRATION, INCREMENT = "registerUser", "increment"


def registration_id(name: str, idempotency_key: str | None, registration: Registration) -> str:
    """The id of a registration that the API key of this name sends. Without an idempotency key, the
    payload is part of it."""
    user = (registration.stock_id, registration.user_id)
    if idempotency_key is None:
        return _id(name, REGISTRATION, "payload", registration.payload_hash(), *user)
    return _id(name, REGISTRATION, "key", idempotency_key, *user)


def increment_id(name: str, idempotency_key: str | None) -> str:
    """The id of an increment. Without an idempotency key it is random."""
    if idempotency_key is None:
        return _owner(name) + secrets.token_hex(REST // 2)
    return _id(name, INCREMENT, "key", idempotency_key)


def is_of(id_: str, name: str) -> bool:
    """Whether this may be an id of the API key of this name."""
    return id_.startswith(_owner(name))


@lru_cache(maxsize=1024)
def _owner(name: str) -> str:
    return sha256(f"name:{name}".encode()).hexdigest()[:OWNER]


def _id(name: str, *parts: str) -> str:
    # With their lengths, so that different parts never make the same text.
    text = "".join(f"{len(part)}:{part}" for part in (name, *parts))
    return _owner(name) + sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:REST]
