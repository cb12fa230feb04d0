"""The broker's errors.

ConfigurationError   the configuration is wrong: the process exits, and a person must correct it
PublishError         raised to the caller of `.delay`
├── InvalidArguments nothing was sent
├── EtaTooFar        nothing was sent
├── UnknownQueue     nothing was sent
├── MessageTooLarge  nothing was sent
├── SendError        SQS did not confirm the message (sqs/sender.py): it says what is known
└── BatchError       the same for some messages of a block `with batching()`
ControlPlaneDown     raised to the sender of a command: MongoDB did not accept it
Undecodable          a body that can never become a task: the message is dead-lettered
NoThread             this machine has no resources for a thread that the worker needs
"""

import click


def label(exc: object) -> str:
    """The class of an exception, with its code if it has one: `WriteError(121)`.

    Never the text, which can hold user input.
    """
    # An exception that was wrapped on its way from the pool has this name (billiard 4.3 einfo.py).
    name = str(getattr(exc, "exc_cls_name", type(exc).__name__))
    code = getattr(exc, "code", None)
    return f"{name}({code})" if isinstance(code, int) and not isinstance(code, bool) else name


class ConfigurationError(click.ClickException):
    """The settings contradict each other or the queue. The text names them and says what to do.

    It is a `ClickException` because every `celery` command is a click command: click prints the
    text in one line and exits with status 1. Any other error would print a traceback.
    """


class ControlPlaneDown(click.ClickException):
    """MongoDB did not accept a command, or one half of a revoke: the text says which. Printed like
    ConfigurationError."""


class PublishError(Exception):
    """The message was not sent. SendError alone may say that it may have been."""


class InvalidArguments(PublishError, TypeError):
    """The arguments do not match the schema of the task. The cause says what is wrong."""


class UnknownQueue(PublishError):
    """No queue of this name is configured. Queues are never created at run time."""


class MessageTooLarge(PublishError):
    """Body and attributes together exceed the size that SQS accepts for a message."""


class EtaTooFar(PublishError):
    """The `eta` or countdown is later than the option `eta_max` allows."""

    def __init__(self, most: float) -> None:
        super().__init__(
            f"The eta or countdown is more than {most} s from now, which the option `eta_max` "
            "does not allow. Choose an earlier time, or raise the option for senders and workers."
        )
        self.most = most

    def __reduce__(self) -> tuple[type, tuple[float]]:
        return EtaTooFar, (self.most,)


class Undecodable(Exception):
    """The body can never become a task. `reason` says why and holds nothing of the body."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NoThread(click.ClickException, RuntimeError):
    """This machine has no resources for one more thread. The caller's state is unchanged."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"This machine cannot start the thread {name}. Raise its limit of processes and "
            "threads (ulimit -u, TasksMax, pids.max), or run fewer programs on it."
        )
