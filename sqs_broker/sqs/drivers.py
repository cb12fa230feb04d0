"""Which driver carries requests to SQS: the one that the options name, libcurl's, or boto3's."""

import logging
from collections.abc import Callable
from functools import cache

from sqs_broker.errors import ConfigurationError
from sqs_broker.options import BOTO3, CURL, Options
from sqs_broker.sqs.driver import READ_TIMEOUT, SECONDS, TRIES, Driver

logger = logging.getLogger(__name__)


def driver_for(
    options: Options,
    *,
    read_timeout: float = READ_TIMEOUT,
    tries: int = TRIES,
    seconds: float = SECONDS,
    is_checked: bool = False,
) -> Driver:
    """Create the driver that the options name. Without one, import and use that of libcurl
    (sqs_broker/sqs/curl.py); if this machine has no libcurl that can sign calls, or the options say
    so or need it, that of boto3 (sqs_broker/sqs/boto.py). Raises ConfigurationError if the options
    contradict each other.

    A whole call takes at most `seconds`, and a long poll its own time in addition. A try fails if
    nothing arrives for `read_timeout` seconds. `is_checked`: whether the driver checks the
    parameters too; otherwise only SQS does.
    """
    make = options.driver or _driver_of(options)
    driver: Driver = make(
        options, read_timeout=read_timeout, tries=tries, seconds=seconds, is_checked=is_checked
    )
    return driver


def _driver_of(options: Options) -> Callable[..., Driver]:
    if not _needs_boto3(options) and _has_curl(is_wanted=options.client == CURL):
        from sqs_broker.sqs.curl import Curl

        return Curl
    from sqs_broker.sqs.boto import Boto

    return Boto


def _needs_boto3(options: Options) -> bool:
    """Whether only boto3 does what the options ask for. Raises ConfigurationError if they ask for
    libcurl too."""
    has_own = any(queue.credentials or queue.region for queue in options.queues.values())
    needed = {
        "`sts_role_arn`": options.role is not None,
        "`client-config`": bool(options.client_config),
        "a queue with credentials or a region of its own": has_own,
    }
    for name, is_needed in needed.items():
        if is_needed and options.client == CURL:
            raise ConfigurationError(
                f"broker_transport_options: {name} needs boto3. Set `client` to {BOTO3!r}, or "
                "remove it."
            )
    return options.client == BOTO3 or any(needed.values())


@cache
def _has_curl(*, is_wanted: bool) -> bool:
    """Whether libcurl can be used. If not, log why, once."""
    try:
        from sqs_broker.sqs import handle
    except ImportError as exc:
        lacks: str | None = f"pycurl cannot be imported ({exc})"
    else:
        lacks = handle.missing()
    if lacks is not None:
        logger.log(
            logging.WARNING if is_wanted else logging.INFO,
            "SQS is called with boto3, not with libcurl: %s.",
            lacks,
            extra={"event": "sqs.client", "reason": lacks},
        )
    return lacks is None
