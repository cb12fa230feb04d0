"""The plain messages of a job (sqs_broker/worker/plain.py), as they go to a pool process.

A process that runs them reads their arguments and their provenance, and for the first message the
rest: the request of Celery. The rest of the other messages goes as bytes, which the process reads
only if somebody asks for a request: for example, if a message has failed and goes through its
trace. What a process then gets is what `Job` has of the same message (sqs_broker/worker/batch.py).
"""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

from sqs_broker.rules.provenance import Provenance

#: The header with the provenance of a message.
DELIVERY = "delivery"

#: The headers and the properties of a message.
Parts = tuple[dict[str, Any], dict[str, Any]]


def request_of(
    parts: Parts, args: Any, kwargs: Any, limits: Sequence[float | None], hostname: str
) -> dict[str, Any]:
    """What Celery makes the request of a plain message of: the same as `Request.request_dict`."""
    headers, properties = parts
    info = properties["delivery_info"]
    return {
        **headers,
        "timelimit": [*limits],
        "properties": properties,
        "reply_to": properties["reply_to"],
        "correlation_id": properties["correlation_id"],
        "hostname": hostname,
        "delivery_info": {
            "exchange": info["exchange"],
            "routing_key": info["routing_key"],
            "priority": properties["priority"],
            "redelivered": info["redelivered"],
        },
        "args": args,
        "kwargs": kwargs,
    }


class PlainJobs(Sequence["PlainJob"]):
    """Plain messages of one task on their way to a process, where this is a list of PlainJob.

    `limits` and `hostname` are those of each request.
    """

    def __init__(self, plains: Sequence[Any], limits: Sequence[float | None], hostname: str):
        self._plains = plains
        self._limits = limits
        self._hostname = hostname

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, self._packed()

    def _packed(self) -> tuple[Any, ...]:
        payloads, origins, rest = [], [], []
        for plain in self._plains:
            headers = plain.headers.copy()
            origins.append(headers.pop(DELIVERY).packed())
            payloads.append(plain.payload)
            rest.append((headers, plain.content["properties"]))
        others = pickle.dumps(rest[1:], pickle.HIGHEST_PROTOCOL)
        return payloads, origins, rest[0], others, self._limits, self._hostname

    @cached_property
    def _received(self) -> list["PlainJob"]:
        return _received(*self._packed())

    def __len__(self) -> int:
        return len(self._plains)

    @overload
    def __getitem__(self, place: int) -> "PlainJob": ...
    @overload
    def __getitem__(self, place: slice) -> Sequence["PlainJob"]: ...
    def __getitem__(self, place: int | slice) -> "PlainJob | Sequence[PlainJob]":
        return self._received[place]


class PlainJob:
    """A plain message in the process that runs it. It has what a Job has."""

    __slots__ = ("_common", "_origin", "_place", "_request", "args", "embed", "kwargs")

    def __init__(
        self, place: int, payload: Sequence[Any], origin: tuple[Any, ...], common: "_Common"
    ) -> None:
        self.args: list[Any]
        self.kwargs: dict[str, Any]
        self.embed: dict[str, Any] | None
        self.args, self.kwargs, self.embed = payload
        self._place = place
        self._origin: Any = origin
        self._common = common
        self._request: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        """The id of the message."""
        return str(self.request["id"])

    @property
    def provenance(self) -> Provenance:
        """Where the message came from."""
        if type(self._origin) is tuple:
            self._origin = Provenance.unpacked(self._origin)
        provenance: Provenance = self._origin
        return provenance

    @property
    def given(self) -> Mapping[str, Any]:
        """What the worker knows of the message, by the names that `request` has."""
        return _Given(self)

    @property
    def request(self) -> dict[str, Any]:
        """What Celery makes the request of. Each time the same object."""
        if self._request is None:
            headers, properties = self._common.parts(self._place)
            parts = headers | {DELIVERY: self.provenance}, properties
            common = self._common
            self._request = request_of(
                parts, self.args, self.kwargs, common.limits, common.hostname
            )
        return self._request


class _Given(Mapping[str, Any]):
    """The request of a message, which is made if somebody asks for more than the provenance."""

    __slots__ = ("_job",)

    def __init__(self, job: PlainJob) -> None:
        self._job = job

    def __getitem__(self, name: str) -> Any:
        return self._job.provenance if name == DELIVERY else self._job.request[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._job.request)

    def __len__(self) -> int:
        return len(self._job.request)


class _Common:
    """What the messages of a job share."""

    def __init__(
        self, first: Parts, others: bytes, limits: Sequence[float | None], hostname: str
    ) -> None:
        self._first = first
        self._others = others
        self.limits = limits
        self.hostname = hostname

    @cached_property
    def _read(self) -> list[Parts]:
        return [self._first, *pickle.loads(self._others)]

    def parts(self, place: int) -> Parts:
        """The headers and the properties of the message at this place."""
        return self._read[place] if place else self._first


def _received(
    payloads: Sequence[Any],
    origins: Sequence[tuple[Any, ...]],
    first: Parts,
    others: bytes,
    limits: Sequence[float | None],
    hostname: str,
) -> list[PlainJob]:
    common = _Common(first, others, limits, hostname)
    pairs = zip(payloads, origins, strict=True)
    return [PlainJob(n, payload, origin, common) for n, (payload, origin) in enumerate(pairs)]
