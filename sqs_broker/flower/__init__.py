"""Flower's pages for an app on this broker: `celery -A … flower` has them without a setting.

The import loads neither Flower nor the pages.
"""

import click


def serve_pages() -> None:
    """Give Flower the pages of this broker, if this process is `celery -A … flower`."""
    if is_served():
        from sqs_broker.flower.pages import install

        install()


def is_served() -> bool:
    """Whether this process is `celery -A … flower`."""
    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().invoked_subcommand == "flower"
