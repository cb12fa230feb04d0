"""`broker_transport_options`, read once into a typed and checked object.

The names that stock kombu has (`region`, `predefined_queues`, `visibility_timeout`,
`wait_time_seconds`; kombu 5.7 transport/SQS) mean here what they mean there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from kombu.utils.imports import symbol_by_name

from app.broker.errors import ConfigurationError, UnknownQueue
from app.broker.mailbox.options import ControlOptions
from app.broker.policy import Policy


@dataclass(frozen=True)
class ForeignMessage:
    """What a program that is not Celery asked for."""

    task: str
    kwargs: dict[str, Any]
    id: str | None
    """The producer's id of the message, where it gave one."""


#: Reads the object of a plain JSON body. Raises Undecodable for what is no message.
DecodeJson = Callable[[dict[str, Any]], ForeignMessage]


@dataclass(frozen=True)
class QueueAddress:
    """Where a queue and its dead letters live."""

    url: str
    dead_letter_url: str | None = None


@dataclass(frozen=True)
class Options:
    """How to reach SQS, and what to do with what comes from it."""

    region: str
    queues: Mapping[str, QueueAddress]
    endpoint_url: str | None = None
    credentials: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """boto3's arguments; empty for its own credential chain."""
    wait_time_seconds: int = 20
    receive_pause_max: float = 20.0
    """Seconds to which the pauses grow between receives that fail."""
    shutdown_timeout: float = 90.0
    """Seconds that running tasks have to finish once the worker is told to stop. The rest of a stop
    takes up to 25 more, so this suits the 120 s that a container often gets."""
    max_receivers: int = 4
    """Receive calls at a time for one queue, while full batches keep coming."""
    max_message_bytes: int = 1_048_576
    """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html"""
    health_file: str | None = None
    """Where a worker writes whether it does its work (app/broker/health.py)."""
    decode_json: DecodeJson | None = None
    policy: Policy = field(default_factory=Policy)
    control: ControlOptions = field(default_factory=ControlOptions)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Read Celery's `broker_transport_options`. Raises ConfigurationError naming the option."""
        if not given.get("region"):
            raise ConfigurationError("broker_transport_options has no region. Add it.")
        decoder = given.get("decode_json")
        return cls(
            region=given["region"],
            queues=_queues(given.get("predefined_queues") or {}),
            endpoint_url=given.get("endpoint_url"),
            credentials=given.get("credentials") or {},
            wait_time_seconds=given.get("wait_time_seconds", cls.wait_time_seconds),
            receive_pause_max=given.get("receive_pause_max", cls.receive_pause_max),
            shutdown_timeout=given.get("shutdown_timeout", cls.shutdown_timeout),
            max_receivers=given.get("max_receivers", cls.max_receivers),
            max_message_bytes=given.get("max_message_bytes", cls.max_message_bytes),
            health_file=given.get("health_file"),
            decode_json=symbol_by_name(decoder) if decoder else None,
            control=ControlOptions.read(given.get("control") or {}),
            policy=Policy(**{f.name: given[f.name] for f in fields(Policy) if f.name in given}),
        )

    def queue(self, name: str) -> QueueAddress:
        """The address of a configured queue. Raises UnknownQueue."""
        try:
            return self.queues[name]
        except KeyError:
            known = ", ".join(sorted(self.queues))
            raise UnknownQueue(
                f"No queue {name!r} is configured; there is: {known}. "
                "Queues are not created at run time: add it to predefined_queues."
            ) from None


def _queues(given: Mapping[str, Mapping[str, str]]) -> dict[str, QueueAddress]:
    if not given:
        raise ConfigurationError("broker_transport_options has no predefined_queues. Add one.")
    for name, address in given.items():
        if name.endswith(".fifo"):
            raise ConfigurationError(f"Queue {name!r} is FIFO; only standard queues are supported.")
        if not address.get("url"):
            raise ConfigurationError(f"predefined_queues gives no url for queue {name!r}.")
    return {
        name: QueueAddress(address["url"], address.get("dead_letter_url"))
        for name, address in given.items()
    }
