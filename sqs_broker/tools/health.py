"""`sqs-health`: a health check of a worker that costs little. It loads neither the app nor Celery.

`celery -A … sqs health` says the same, but starts Celery for it.
"""

import sys

from sqs_broker.machine.health_file import read

USAGE = """Usage: sqs-health FILE

Show in one line whether a worker is healthy. FILE is what its option `health_file` names. Exit
status 0: it is healthy; 1: it is not, or does not run; 2: the command line is wrong.
"""


def main() -> None:
    """Run the command. Exits the process."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(USAGE)
        sys.exit(0)
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write(USAGE)
        sys.exit(2)
    report = read(arguments[0])
    line = f"{'healthy' if report.healthy else 'not healthy'}: {report.text}"
    # Another program may have written the file: a terminal gets no control characters.
    sys.stdout.write("".join(c if c.isprintable() else "?" for c in line) + "\n")
    sys.exit(0 if report.healthy else 1)
