"""`sqs-health`: a health check of a worker that costs little. It loads neither the app nor Celery.

`celery -A … sqs health` says the same, but starts Celery for it.
"""

import os
import sys

from sqs_broker.machine.health_file import read

#: The variable that names the file if the command line does not.
VARIABLE = "WORKER_HEALTH_FILE"

USAGE = f"""Usage: sqs-health [FILE]

Show in one line whether the worker that writes this health file is healthy. Without FILE, the
variable {VARIABLE} names it. Exit status 0: it is healthy; 1: it is not, or does not run; 2: no
file is named.
"""


def main() -> None:
    """Run the command. Exits the process."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(USAGE)
        sys.exit(0)
    path = arguments[0] if arguments else os.environ.get(VARIABLE)
    if not path or len(arguments) > 1 or path.startswith("-"):
        sys.stderr.write(USAGE)
        sys.exit(2)
    report = read(path)
    line = f"{'healthy' if report.healthy else 'not healthy'}: {report.text}"
    # Another program may have written the file: a terminal gets no control characters.
    sys.stdout.write("".join(c if c.isprintable() else "?" for c in line) + "\n")
    sys.exit(0 if report.healthy else 1)
