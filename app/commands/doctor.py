"""The checks of `sqs doctor` that belong to this application: its settings and its database."""

from collections.abc import Iterator
from typing import Any

from app.commands.database import check_database
from app.settings import get_settings
from app.startup import check_numbers
from sqs_broker.tools.checks import Finding
from sqs_broker.tools.doctor import setting


def check(celery_app: Any) -> Iterator[Finding]:
    """Check the settings as a worker does when it starts, and MongoDB if there is an address."""
    yield setting("complete", lambda: get_settings().require_worker())
    yield setting("numbers", lambda: check_numbers(celery_app))
    if (uri := get_settings().mongo_uri) is not None:
        yield from check_database(uri.get_secret_value())
