"""Who runs a command: what the audit names."""

import getpass
import socket

from sqs_broker.options import Options
from sqs_broker.sqs.boto import ask, quick_client
from sqs_broker.sqs.errors import SqsError
from sqs_broker.tools.broker import is_aws


def who(options: Options) -> str:
    """The caller's ARN as AWS knows it. If there is no AWS, or if STS does not answer, the user and
    the machine."""
    if is_aws(options.endpoint_url):
        try:
            return str(ask(quick_client(options, "sts").get_caller_identity)["Arn"])
        except SqsError:
            pass  # The next best is better than no audit.
    return f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # A container may run as a user without a name.
