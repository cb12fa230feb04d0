"""A real browser: the machine's Chromium, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, sync_playwright

#: Milliseconds for what a page is to show.
SHOWN = 30_000
SIZE = {"width": 1200, "height": 680}

#: It keeps to itself, and runs for root in a container.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def browsing(profile: Path, login: str | None = None) -> Iterator[BrowserContext]:
    """A browser with a new profile, logged in where a site asks, until the end of the block."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("Chromium is missing: `sudo apt-get install chromium`.", pytrace=False)
    options: dict[str, Any] = {}
    if login is not None:
        username, _, password = login.partition(":")
        options["http_credentials"] = {"username": username, "password": password}
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=FLAGS, viewport=SIZE, **options
        )
        context.set_default_timeout(SHOWN)
        try:
            yield context
        finally:
            context.close()
