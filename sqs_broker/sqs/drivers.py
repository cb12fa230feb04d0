"""Which driver carries requests to SQS: the one that the options name, or boto3's."""

from collections.abc import Callable

from sqs_broker.options import Options
from sqs_broker.sqs.driver import READ_TIMEOUT, SECONDS, TRIES, Driver


def driver_for(
    options: Options,
    *,
    read_timeout: float = READ_TIMEOUT,
    tries: int = TRIES,
    seconds: float = SECONDS,
    is_checked: bool = False,
) -> Driver:
    """Create the driver that the options name. Without one, import and use that of boto3
    (sqs_broker/sqs/boto.py).

    A whole call takes at most `seconds`, and a long poll its own time in addition. A try fails if
    nothing arrives for `read_timeout` seconds. `is_checked`: whether the driver checks the
    parameters too; otherwise only SQS does.
    """
    make: Callable[..., Driver] | None = options.driver
    if make is None:
        from sqs_broker.sqs.boto import Boto

        make = Boto
    return make(
        options, read_timeout=read_timeout, tries=tries, seconds=seconds, is_checked=is_checked
    )
