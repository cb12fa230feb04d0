"""Reads `broker_transport_options` once, into a typed and checked object.

The options that stock kombu also has (`region`, `predefined_queues`, `visibility_timeout`,
`wait_time_seconds`, `client-config`, `sts_role_arn`, `sts_token_timeout`, `sts_token_buffer_time`;
kombu 5.7 transport/SQS) have the same meaning as there. Any other option is refused by name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cache, cached_property
from math import inf
from typing import Any, Self

from sqs_broker.errors import ConfigurationError, UnknownQueue
from sqs_broker.limits import LONGEST_RETENTION, MOST_BYTES
from sqs_broker.machine.address import is_loopback
from sqs_broker.rules.canvas import Canvas
from sqs_broker.rules.due import ETA_MAX
from sqs_broker.rules.foreign import DecodeJson
from sqs_broker.rules.option_values import CONTROL_VALUES, check_values
from sqs_broker.rules.policy import Policy
from sqs_broker.rules.stock_options import OF_QUEUE, OF_TRANSPORT, check_names

#: Longest life of a message, in seconds: in its queue, in the dead-letter queue, and in its queue
#: again after a redrive, plus three days.
LONGEST_LIFE = 3 * LONGEST_RETENTION + 3 * 86_400

#: https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions
DATABASE_NAME = re.compile(r'[^/\\. "$*<>:|?\0]+')

#: The schemes of a URI of MongoDB.
MONGODB = ("mongodb", "mongodb+srv")

#: What makes spans if the option `tracing` is true.
OPENTELEMETRY = "sqs_broker.observers.spans:tracing"

#: What can call SQS.
CURL = "curl"
BOTO3 = "boto3"
CLIENTS = (CURL, BOTO3)


class Kind(Enum):
    """What an exchange of the control plane carries."""

    EVENTS = "events"
    COMMANDS = "commands"
    REPLIES = "replies"


@dataclass(frozen=True)
class ControlOptions:
    """Where the control plane is stored. All processes that communicate through it need equal
    options."""

    uri: str | None = field(default=None, repr=False)
    """MongoDB's URI. Without it there is no control plane, and only its clients get an error."""
    database: str = "celery_control"
    size_bytes: int = 64 * 1024 * 1024
    """Size of each of the two capped collections, of the latest events and the latest commands."""
    revokes_seconds: int = LONGEST_LIFE
    """How long a revoke is kept, in seconds."""
    how_to_set: str = "Give broker_transport_options a `control` with a `database_uri`."
    event_exchange: str = "celeryev"
    event_queue_prefix: str = "celeryev"
    control_exchange: str = "celery"

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Read the option. `database_uri` may be a pydantic secret. Raises ConfigurationError."""
        known = {"database_uri", *cls.__dataclass_fields__} - {"uri"}
        if not given.keys() <= known:
            raise ConfigurationError(
                "broker_transport_options: `control` has an unknown key. It takes only "
                f"{', '.join(sorted(known))}."
            )
        values = dict(given)
        uri = values.pop("database_uri", None)
        # A name that Celery masks wherever it shows its configuration (celery 5.7 app/utils.py).
        values["uri"] = uri.get_secret_value() if hasattr(uri, "get_secret_value") else uri
        values = {name: value for name, value in values.items() if value is not None}
        options = cls(**values)
        where = "broker_transport_options: in `control`"
        check_values(values, CONTROL_VALUES, where)
        scheme, is_url, _ = (options.uri or "").partition("://")
        if is_url and scheme not in MONGODB:
            raise ConfigurationError(
                f"{where}, `database_uri` must be a URI of MongoDB: mongodb:// or mongodb+srv://."
            )
        if not DATABASE_NAME.fullmatch(options.database) or len(options.database.encode()) > 63:
            raise ConfigurationError(
                "broker_transport_options: in `control`, `database` is not a valid database name: "
                'at most 63 bytes, without / \\ . " $ * < > : | ? and spaces.'
            )
        return options

    def kind(self, exchange: str) -> Kind | None:
        """What an exchange carries; None if it does not belong to the control plane."""
        return self._kinds.get(exchange)

    def owns_queue(self, name: str) -> bool:
        """Whether a queue belongs to the control plane, by Celery's names for such queues."""
        return name.startswith(f"{self.event_queue_prefix}.") or name.endswith(
            f".{self.control_exchange}.pidbox"
        )

    def require_uri(self) -> str:
        """MongoDB's URI. Raises ConfigurationError if there is none."""
        if self.uri is None:
            raise ConfigurationError(
                f"Events, inspect and control go through MongoDB. {self.how_to_set}"
            )
        return self.uri

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        # kombu 5.7 pidbox.py, celery 5.7 events/event.py.
        return {
            self.event_exchange: Kind.EVENTS,
            f"{self.control_exchange}.pidbox": Kind.COMMANDS,
            f"reply.{self.control_exchange}.pidbox": Kind.REPLIES,
        }


@dataclass(frozen=True)
class MetricsOptions:
    """The ways out of the figures of a process (sqs_broker/observers/instruments.py)."""

    port: int | None = None
    """Port on which a worker serves `/metrics` for Prometheus. None: it does not."""
    address: str = "127.0.0.1"
    """Address of that port. Another than one of loopback needs a login."""
    login: str | None = field(default=None, repr=False)
    """`user:password` of that page."""
    opentelemetry: bool = False
    """Whether OpenTelemetry's global meter provider gets the figures."""
    class_of: Callable[[str, str], str | None] | None = None
    """Takes the name of a task and its result as Celery logs it, and returns one of few names."""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Read the option. `login` may be a pydantic secret. Raises ConfigurationError."""
        from kombu.utils.imports import symbol_by_name  # A producer of plain JSON needs no kombu.

        where = "broker_transport_options: `metrics`"
        check_names(given, frozenset(cls.__dataclass_fields__), where)
        values = dict(given)
        login: Any = values.get("login")
        if hasattr(login, "get_secret_value"):
            values["login"] = login.get_secret_value()
        if class_of := values.get("class_of"):
            values["class_of"] = symbol_by_name(class_of)
        options = cls(**values)
        _check_metrics(options, where)
        return options


def _check_metrics(options: MetricsOptions, where: str) -> None:
    port, login = options.port, options.login
    if port is not None and not (type(port) is int and 0 < port < 65_536):
        raise ConfigurationError(f"{where}: `port` must be a number from 1 to 65535.")
    user, _, password = (login or "").partition(":")
    if login is not None and not (user and password):
        raise ConfigurationError(f"{where}: `login` must be user:password.")
    if port is not None and login is None and not is_loopback(options.address):
        raise ConfigurationError(
            f"{where}: other machines can read the metrics at {options.address!r}. Set `login` to "
            "user:password, or `address` to 127.0.0.1."
        )


@dataclass(frozen=True)
class Role:
    """A role that is assumed through STS. Its credentials are renewed before they expire."""

    arn: str
    seconds: int = 900
    """How long its credentials are valid."""
    early: int = 0
    """They are renewed so many seconds earlier than otherwise."""


@dataclass(frozen=True)
class QueueAddress:
    """The URLs of a queue and of its dead-letter queue, and what both need if it differs from that
    of the other queues."""

    url: str
    dead_letter_url: str | None = None
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Credential arguments of boto3; if empty, those of the options."""
    region: str | None = None


@dataclass(frozen=True)
class Options:
    """How to reach SQS, and how to handle its messages."""

    region: str
    queues: Mapping[str, QueueAddress]
    endpoint_url: str | None = None
    credentials: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Credential arguments of boto3; if empty, boto3 uses its own credential chain."""
    role: Role | None = None
    client_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Arguments of botocore's Config: the project's own."""
    wait_time_seconds: int = 20
    receive_pause_max: float = 20.0
    """Longest pause between receive calls that fail, in seconds."""
    shutdown_timeout: float = 90.0
    """Seconds that running tasks have to finish after the signal to stop. The rest of a stop takes
    up to 25 s more, which fits into the 120 s that many container platforms allow."""
    max_receivers: int = 4
    """Most receive calls at a time for one queue. More than one is used while batches are full."""
    publish_timeout: float = 5.0
    """Seconds within which a call that sends messages ends, with all its tries."""
    max_message_bytes: int = MOST_BYTES
    """Most bytes of a message that the queues accept."""
    eta_max: float = ETA_MAX
    """Most seconds from now until the `eta` of a message. Senders and workers refuse more."""
    health_file: str | None = None
    """File to which a worker writes whether it is healthy (sqs_broker/worker/health.py)."""
    unhealthy_exit: float = 300.0
    """Seconds after which a worker that is not healthy ends, so that its supervisor starts another;
    0: it never does."""
    decode_json: DecodeJson | None = None
    schemas: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """By task, what a producer calls with the arguments before it sends them. It raises TypeError
    or ValueError if they are wrong."""
    observers: tuple[Any, ...] = ()
    """The project's own observers (sqs_broker/observers/observer.py)."""
    brackets: tuple[Any, ...] = ()
    """Context managers around each run of a task (sqs_broker/observers/bracket.py)."""
    metrics: MetricsOptions = field(default_factory=MetricsOptions)
    tracing: Any = None
    """Makes spans (sqs_broker/observers/tracing.py); None: there are none."""
    driver: Callable[..., Any] | None = None
    """Creates the `Driver` that sends requests to SQS (sqs_broker/sqs/driver.py); if None, `client`
    says which."""
    client: str | None = None
    """What calls SQS if there is no `driver`: "curl" or "boto3". None: libcurl if this machine has
    one that can (sqs_broker/sqs/drivers.py)."""
    log_texts: bool = False
    """Whether Celery's own log lines in a worker have the texts of exceptions."""
    most_in_flight: int = 60_000
    """From so many messages of a queue in flight on, retries wait as delayed copies."""
    policy: Policy = field(default_factory=Policy)
    canvas: Canvas = field(default_factory=Canvas)
    control: ControlOptions | Callable[[], ControlOptions] = field(default_factory=ControlOptions)
    """Where the control plane is stored, or a function that reads it when it is first needed."""

    @classmethod
    def read(cls, given: Mapping[str, Any], *, accepts_fifo: bool = False) -> Self:
        """Read Celery's `broker_transport_options`. Raises ConfigurationError with the name of an
        option that is unknown, missing or wrong. FIFO queues are refused, unless the caller keeps
        their order."""
        check_names(given, NAMES, "broker_transport_options", OF_TRANSPORT)
        check_values(given)
        given = {name: value for name, value in given.items() if value is not None}
        if not given.get("region"):
            raise ConfigurationError("broker_transport_options has no `region`. Add it.")
        tracing = _tracing(given.get("tracing"))
        observers = [_imported("observers", each) for each in given.get("observers") or ()]
        brackets = [_imported("brackets", each) for each in given.get("brackets") or ()]
        schemas = (given.get("schemas") or {}).items()
        return cls(
            region=given["region"],
            queues=_queues(given.get("predefined_queues") or {}, accepts_fifo),
            endpoint_url=given.get("endpoint_url"),
            credentials=_credentials(given.get("credentials") or {}),
            role=_role(given),
            client_config=_client_config(given.get("client-config") or {}),
            wait_time_seconds=given.get("wait_time_seconds", cls.wait_time_seconds),
            receive_pause_max=given.get("receive_pause_max", cls.receive_pause_max),
            shutdown_timeout=given.get("shutdown_timeout", cls.shutdown_timeout),
            max_receivers=given.get("max_receivers", cls.max_receivers),
            publish_timeout=float(given.get("publish_timeout", cls.publish_timeout)),
            max_message_bytes=given.get("max_message_bytes", cls.max_message_bytes),
            eta_max=given.get("eta_max", cls.eta_max),
            health_file=given.get("health_file"),
            unhealthy_exit=given.get("unhealthy_exit", cls.unhealthy_exit),
            decode_json=_imported("decode_json", given.get("decode_json")),
            schemas={task: _imported("schemas", schema) for task, schema in schemas},
            metrics=MetricsOptions.read(given.get("metrics") or {}),
            # The spans are around what the project's own observers and brackets do.
            observers=(*([tracing.observer] if tracing else []), *observers),
            brackets=(*([tracing.bracket] if tracing else []), *brackets),
            tracing=tracing,
            driver=_imported("driver", given.get("driver")),
            client=_client(given.get("client")),
            log_texts=given.get("log_texts", cls.log_texts),
            most_in_flight=given.get("most_in_flight", cls.most_in_flight),
            control=_control(given.get("control") or {}),
            policy=Policy(**{f.name: given[f.name] for f in fields(Policy) if f.name in given}),
            canvas=Canvas.read(given),
        )

    def control_options(self) -> ControlOptions:
        """Where the control plane is stored. Raises ConfigurationError."""
        return self.control if isinstance(self.control, ControlOptions) else self.control()

    def of_queue(self, url: str) -> Self:
        """These options with the region and the credentials of the queue with this URL, which may
        be that of a dead-letter queue."""
        own = (queue for queue in self.queues.values() if url == queue.url)
        dead = (queue for queue in self.queues.values() if url == queue.dead_letter_url)
        queue = next(own, None) or next(dead, None)
        if queue is None or not (queue.credentials or queue.region):
            return self
        return replace(
            self,
            region=queue.region or self.region,
            credentials=queue.credentials or self.credentials,
        )

    def queue(self, name: str) -> QueueAddress:
        """The address of a configured queue. Raises UnknownQueue."""
        try:
            return self.queues[name]
        except KeyError:
            known = ", ".join(sorted(self.queues))
            raise UnknownQueue(
                f"No queue {name!r} is configured. The configured queues are: {known}. "
                "Queues are not created at run time: add it to predefined_queues."
            ) from None


def _control(given: Any) -> ControlOptions | Callable[[], ControlOptions]:
    if isinstance(given, Mapping):
        return ControlOptions.read(given)

    @cache
    def read() -> ControlOptions:
        return ControlOptions.read(_imported("control", given)())

    return read


def _imported(option: str, given: Any) -> Any:
    """What an option names by its import path; anything else is given itself. Raises
    ConfigurationError if there is no such thing."""
    if not isinstance(given, str):
        return given
    from kombu.utils.imports import symbol_by_name  # A producer of plain JSON needs no kombu.

    try:
        return symbol_by_name(given)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigurationError(
            f"broker_transport_options: `{option}` names {given!r}, which cannot be imported "
            f"({exc})."
        ) from exc


def _tracing(given: Any) -> Any:
    if not given:
        return None
    from kombu.utils.imports import symbol_by_name

    try:
        return symbol_by_name(OPENTELEMETRY if given is True else given)
    except ImportError as exc:
        raise ConfigurationError(
            f"broker_transport_options: `tracing` cannot be imported ({exc.name} is missing). "
            "Install celery-sqs-broker[opentelemetry]."
        ) from exc


def _client(given: Any) -> str | None:
    if given not in (None, *CLIENTS):
        raise ConfigurationError(
            f"broker_transport_options: `client` must be one of {', '.join(map(repr, CLIENTS))}."
        )
    client: str | None = given
    return client


def _seconds(given: Mapping[str, Any], name: str, default: float) -> float:
    seconds = given.get(name, default)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < inf:
        raise ConfigurationError(
            f"broker_transport_options: `{name}` must be a number of seconds above 0."
        )
    return float(seconds)


#: The options that are not a field of `Options` with the same name.
_ELSEWHERE = {
    "client-config",
    "predefined_queues",
    "sts_role_arn",
    "sts_token_buffer_time",
    "sts_token_timeout",
}

#: All options.
NAMES = frozenset(
    {f.name for cls in (Options, Policy, Canvas) for f in fields(cls)}
    - {"queues", "policy", "canvas", "role", "client_config"}
    | _ELSEWHERE
)

#: By option of a queue, the argument of boto3.
QUEUE_CREDENTIALS = {
    "access_key_id": "aws_access_key_id",
    "secret_access_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
}

#: The keys of a queue in `predefined_queues`.
QUEUE_NAMES = frozenset({"url", "dead_letter_url", "region", *QUEUE_CREDENTIALS})

#: The keys of `credentials`: arguments of boto3.session.Session.
CREDENTIALS = frozenset(
    {
        "aws_access_key_id",
        "aws_account_id",
        "aws_secret_access_key",
        "aws_session_token",
        "botocore_session",
        "profile_name",
    }
)

#: The arguments of botocore's Config that the broker sets itself: its deadlines depend on them.
OWN_CLIENT_CONFIG = frozenset(
    {
        "connect_timeout",
        "parameter_validation",
        "read_timeout",
        "region_name",
        "retries",
        "tcp_keepalive",
        "user_agent",
    }
)


def _credentials(given: Mapping[str, Any]) -> Mapping[str, Any]:
    check_names(given, CREDENTIALS, "broker_transport_options: `credentials`")
    return given


def _role(given: Mapping[str, Any]) -> Role | None:
    if not given.get("sts_role_arn"):
        for name in ("sts_token_timeout", "sts_token_buffer_time"):
            if given.get(name):
                raise ConfigurationError(
                    f"broker_transport_options: `{name}` needs `sts_role_arn`. Add it, or remove "
                    f"`{name}`."
                )
        return None
    seconds = int(_seconds(given, "sts_token_timeout", Role.seconds))
    early = given.get("sts_token_buffer_time") or Role.early
    if not isinstance(early, int) or not 0 <= early < seconds:
        raise ConfigurationError(
            "broker_transport_options: `sts_token_buffer_time` must be a whole number of seconds "
            "below `sts_token_timeout`."
        )
    return Role(given["sts_role_arn"], seconds, early)


def _client_config(given: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in given:
        if name in OWN_CLIENT_CONFIG:
            raise ConfigurationError(
                f"broker_transport_options: in `client-config`, {name!r} is not supported: the "
                "broker sets it itself. Remove it."
            )
    return given


def _queues(given: Mapping[str, Mapping[str, str]], accepts_fifo: bool) -> dict[str, QueueAddress]:
    if not given:
        raise ConfigurationError("broker_transport_options has no `predefined_queues`. Add one.")
    for name, address in given.items():
        where = f"predefined_queues: queue {name!r}"
        if not isinstance(address, Mapping):
            raise ConfigurationError(f'{where} must be a dictionary: {{"url": …}}.')
        check_names(address, QUEUE_NAMES, where, OF_QUEUE)
        if not address.get("url"):
            raise ConfigurationError(f"predefined_queues has no `url` for queue {name!r}. Add it.")
        addresses = (name, address["url"], address.get("dead_letter_url") or "")
        if not accepts_fifo and any(a.endswith(".fifo") for a in addresses):
            raise ConfigurationError(f"Queue {name!r} is FIFO; only standard queues are supported.")
        if bool(address.get("access_key_id")) != bool(address.get("secret_access_key")):
            raise ConfigurationError(
                f"{where}: `access_key_id` and `secret_access_key` belong together. Set both or "
                "none."
            )
    return {
        name: QueueAddress(
            address["url"],
            address.get("dead_letter_url"),
            {to: address[of] for of, to in QUEUE_CREDENTIALS.items() if address.get(of)},
            address.get("region"),
        )
        for name, address in given.items()
    }
