"""Exceptions without their texts, for log lines: a text can hold what came with a message."""

#: Most causes of an exception that are kept.
MOST_CAUSES = 10


def textless(exc: BaseException, causes: int = MOST_CAUSES) -> Exception:
    """A stand-in for an exception in a log line. Formatters print it like the exception itself:
    with its class and its code locations, and those of its causes, but without any text."""
    kind = type(exc)
    made: Exception = type(kind.__name__, (Exception,), {"__module__": kind.__module__})()
    made.__traceback__ = exc.__traceback__
    if causes:
        if exc.__cause__ is not None:
            made.__cause__ = textless(exc.__cause__, causes - 1)
        elif exc.__context__ is not None and not exc.__suppress_context__:
            made.__context__ = textless(exc.__context__, causes - 1)
    return made
