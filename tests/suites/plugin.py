"""A plugin for pytest in Celery's own test suite: each app of the suite is on this broker, and no
test has less time than the others."""

import json
import os
from typing import Any

import pytest
from celery.contrib.testing import app as testing

from sqs_broker import install

SETTINGS = json.loads(os.environ["SUITE_SETTINGS"])

#: Seconds after which a test is ended. Some have limits of their own, of 20 s and more, which a
#: busy machine exceeds; the longest test takes three minutes on a quiet one.
LONGEST = 600

make_app = testing.TestApp


def installed_app(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """The app of the suite's fixtures, with this broker."""
    app = make_app(*args, config={**(config or {}), **SETTINGS}, **kwargs)
    install(app)
    return app


# The fixtures look the function up when they make an app.
testing.TestApp = installed_app


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the same limit, in place of its own."""
    for item in items:
        item.add_marker(pytest.mark.timeout(LONGEST), append=False)
