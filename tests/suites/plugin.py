"""A plugin for pytest in Celery's own test suite: each app of the suite is on this broker."""

import json
import os
from typing import Any

from celery.contrib.testing import app as testing

from sqs_broker import install

SETTINGS = json.loads(os.environ["SUITE_SETTINGS"])


make_app = testing.TestApp


def installed_app(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """The app of the suite's fixtures, with this broker."""
    app = make_app(*args, config={**(config or {}), **SETTINGS}, **kwargs)
    install(app)
    return app


# The fixtures look the function up when they make an app.
testing.TestApp = installed_app
