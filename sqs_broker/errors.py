"""The broker's errors.

ConfigurationError   the worker or the caller is set up wrongly: stop, a person must change it
PublishError         raised at the caller of `.delay`; nothing was sent
├── UnknownQueue
└── MessageTooLarge
ControlPlaneDown     raised at the caller of a command: MongoDB did not take it
Undecodable          a body that can never become a task: dead-letter it
NoThread             this machine has no room for a thread that a worker cannot live without
"""

import click


def label(exc: object) -> str:
    """The class of an exception, and its number where it has one: `WriteError(121)`.

    Never its text, which can hold what a user typed.
    """
    # An exception that had to be wrapped on its way from the pool (billiard 4.3 einfo.py).
    name = str(getattr(exc, "exc_cls_name", type(exc).__name__))
    code = getattr(exc, "code", None)
    return f"{name}({code})" if isinstance(code, int) and not isinstance(code, bool) else name


class ConfigurationError(click.ClickException):
    """The settings contradict each other or the queue; the text names them and the way out.

    A `ClickException`, because every `celery` command is a click command, and click ends the
    process with the text in one line and exit status 1 where any other error is a traceback.
    """


class ControlPlaneDown(click.ClickException):
    """MongoDB did not take a command; nobody has heard it. Shown as ConfigurationError is."""


class PublishError(Exception):
    """The message was refused before anything was sent."""


class UnknownQueue(PublishError):
    """No queue of this name is configured. Queues are never created at run time."""


class MessageTooLarge(PublishError):
    """Body and attributes together are above what SQS takes in one message."""


class Undecodable(Exception):
    """The body can never become a task. `reason` says why and holds nothing of the body."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NoThread(click.ClickException, RuntimeError):
    """This machine has no room for one more thread; who asked for it is as before."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"This machine has no room for the thread {name}. Raise its limit of processes and "
            "threads (ulimit -u, TasksMax, pids.max), or run less beside it."
        )
