"""Flower of this application: with the pages of the broker, and log lines in the worker's format.

flowerconfig.py calls `install` before Flower creates its pages.
"""

from app.logs import set_up
from sqs_broker.tools.flower import pages


def install() -> None:
    """Replace Flower's handlers with the broker's, and let Flower log in the worker's format."""
    pages.install()
    set_up()
