"""Finds loops between queues and their dead-letter queues: pure functions.

If a worker receives the dead letters of its own queue, one bad message goes round without end, many
times a second.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol
from urllib.parse import unquote

from sqs_broker.errors import ConfigurationError

#: The region in the host name of an SQS endpoint: the usual ones (also FIPS, dual-stack and private
#: ones) and the older ones. https://docs.aws.amazon.com/general/latest/gr/sqs-service.html
REGION = r"([a-z]+(?:-[a-z]+)+-\d+)"
HOST = re.compile(rf"(?:^|\.)sqs(?:-fips)?\.{REGION}\.|^{REGION}\.queue\.amazonaws\.com")

#: The oldest endpoint has no region in its name.
FIRST_HOST, FIRST_REGION = "queue.amazonaws.com", "us-east-1"

#: What local servers put in place of an AWS account; several of them may mean the same queue.
NO_ACCOUNT = ("", "queue", "000000000000")


class By(StrEnum):
    """What makes the dead letters of a queue go to another queue."""

    SETTING = "dead_letter_url"
    POLICY = "its redrive policy"


@dataclass(frozen=True)
class Route:
    """The dead letters of the queue `source` go to the queue `target`."""

    source: str
    target: str
    by: By
    configured: str | None = None
    """The source's name in the options, if the options name the target."""

    def __str__(self) -> str:
        known_as = self.configured not in (None, self.source)
        source = f"{self.configured} ({self.source})" if known_as else self.source
        target = f"{self.source} itself" if self.source == self.target else self.target
        return f"those of {source} to {target} ({self.by})"


class Address(Protocol):
    """The URLs of a queue and of its dead-letter queue."""

    @property
    def url(self) -> str: ...

    @property
    def dead_letter_url(self) -> str | None: ...


class Addresses(Protocol):
    """The configured queues, as in sqs_broker/options.py."""

    @property
    def region(self) -> str: ...

    @property
    def endpoint_url(self) -> str | None: ...

    @property
    def queues(self) -> Mapping[str, Address]: ...


@dataclass(frozen=True)
class Identity:
    """What identifies a queue: two addresses with equal identities are the same queue."""

    region: str
    account: str
    name: str


def circle(addresses: Addresses, policies: Mapping[str, str] | None = None) -> tuple[Route, ...]:
    """The routes of a loop of dead letters, in order; empty if there is no loop.

    `policies`: the known values of the queue attribute RedrivePolicy, by queue URL.
    """
    routes = _routes(addresses, policies or {})
    for queue in routes:
        if found := _shortest_loop(queue, routes):
            return found
    return ()


def in_words(routes: tuple[Route, ...]) -> str:
    """A loop as a sentence for an error message."""
    steps = ", ".join(str(route) for route in routes)
    return f"dead letters go round in a loop: {steps}; so a bad message would never stop"


def refuse_circle(addresses: Addresses) -> None:
    """Raise ConfigurationError if the options send dead letters back to their own queue."""
    if found := circle(addresses):
        raise ConfigurationError(
            f"predefined_queues: {in_words(found)}. "
            "Set dead_letter_url to a queue that no worker receives from."
        )


def identity(url: str, addresses: Addresses) -> Identity:
    """The identity of a queue, from its URL. Of the host only the region counts, because all calls
    go to one endpoint."""
    # Parsed by hand: an invalid URL must not raise here.
    authority, _, rest = url.partition("://")[2].partition("/")
    host = authority.rpartition("@")[2].partition(":")[0].rstrip(".").lower()
    path = rest.partition("?")[0].partition("#")[0]
    *account, name = [unquote(part) for part in path.split("/") if part] or [host]
    digits = [part for part in account if part.isdigit()]
    return Identity(_region(host, addresses), "/".join(digits[-1:] or account), name)


def identity_of_arn(arn: str, addresses: Addresses) -> Identity:
    """The identity of a queue, from its ARN: `arn:aws:sqs:region:account:name`."""
    *_, region, account, name = f"::{arn}".split(":")
    return Identity(addresses.region if addresses.endpoint_url else region, account, name)


def _region(host: str, addresses: Addresses) -> str:
    if addresses.endpoint_url:
        return addresses.region
    if host == FIRST_HOST:
        return FIRST_REGION
    found = HOST.search(host)
    return (found[1] or found[2]) if found else addresses.region


def _routes(
    addresses: Addresses, policies: Mapping[str, str]
) -> dict[Identity, list[tuple[Identity, Route]]]:
    """Each source with its targets and routes."""
    edges = [*_by_setting(addresses), *_by_policy(addresses, policies)]
    known = {queue for source, target, _ in edges for queue in (source, target)}
    without_account = {queue.name for queue in known if queue.account in NO_ACCOUNT}

    def one(queue: Identity) -> Identity:
        return replace(queue, account="") if queue.name in without_account else queue

    routes: dict[Identity, list[tuple[Identity, Route]]] = {}
    for source, target, route in edges:
        routes.setdefault(one(source), []).append((one(target), route))
    return routes


def _by_setting(addresses: Addresses) -> Iterator[tuple[Identity, Identity, Route]]:
    for name, address in addresses.queues.items():
        if address.dead_letter_url is not None:
            source = identity(address.url, addresses)
            target = identity(address.dead_letter_url, addresses)
            yield source, target, Route(source.name, target.name, By.SETTING, name)


def _by_policy(
    addresses: Addresses, policies: Mapping[str, str]
) -> Iterator[tuple[Identity, Identity, Route]]:
    for url, policy in policies.items():
        if arn := json.loads(policy or "{}").get("deadLetterTargetArn"):
            source, target = identity(url, addresses), identity_of_arn(str(arn), addresses)
            yield source, target, Route(source.name, target.name, By.POLICY)


def _shortest_loop(
    start: Identity, routes: Mapping[Identity, list[tuple[Identity, Route]]]
) -> tuple[Route, ...]:
    """The shortest path from a queue to itself."""
    paths: list[tuple[Identity, tuple[Route, ...]]] = [(start, ())]
    seen = set()
    for queue, path in paths:
        for target, route in routes.get(queue, ()):
            if target == start:
                return (*path, route)
            if target not in seen:
                seen.add(target)
                paths.append((target, (*path, route)))
    return ()
