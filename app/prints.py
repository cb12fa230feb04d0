"""What a process prints, as lines of its log."""

import io
import logging
import threading

logger = logging.getLogger(__name__)

#: Most characters of a line. A longer one becomes several.
LONGEST = 8_000


class Prints(io.TextIOBase):
    """Takes the place of `sys.stdout` and `sys.stderr`: each line is a line of the log, at INFO.
    Thread-safe: the text of each thread is a text of its own.

    As Celery's `LoggingProxy`, which makes a line of each argument of `print`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun = threading.local()

    def writable(self) -> bool:
        """It can be written to."""
        return True

    def write(self, text: str, /) -> int:
        """Take text, and log the lines that it completes. Raises TypeError for bytes."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        *lines, rest = (getattr(self._begun, "text", "") + text).split("\n")
        if len(rest) > LONGEST:
            lines, rest = [*lines, rest], ""
        self._begun.text = rest
        for line in lines:
            _log(line)
        return len(text)

    def flush(self) -> None:
        """Log what is no whole line yet."""
        rest, self._begun.text = getattr(self._begun, "text", ""), ""
        _log(rest)


def _log(line: str) -> None:
    for start in range(0, len(line.rstrip()), LONGEST):
        logger.info("%s", line[start : start + LONGEST].rstrip(), extra={"event": "print"})
