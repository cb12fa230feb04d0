"""`sqs dlq export` and `sqs dlq import`: dead letters in a file, and back from it."""

import os
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any

import click

from sqs_broker.limits import BATCH
from sqs_broker.machine import files
from sqs_broker.sqs.publisher import Batch, Published
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import name_of
from sqs_broker.tools.commands.dead_letter_queues import (
    DeadLetterQueues,
    Filter,
    filters,
    matching,
)
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import print_note
from sqs_broker.tools.commands.pace import Pace, Rate
from sqs_broker.tools.ledger import ledger_of
from sqs_broker.tools.letter_file import BadLine, Letter, letters_in, line_of


@click.command("export", epilog="Example: celery -A app sqs dlq export --file letters.jsonl")
@filters
@click.option("--file", "path", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--limit", type=click.IntRange(1), help="Export at most this many messages.")
@click.pass_context
def export(ctx: click.Context, /, path: Path, limit: int | None, **criteria: Any) -> None:
    """Write dead letters to a file, one JSON object per line. They stay where they are.

    A line has all of a message: body, attributes (binary ones in base64), message group, and the
    system attributes. Only its owner can read the file, because bodies may hold personal data. The
    file has its name only once it is complete. A file of this name is never replaced.

    Exits with status 1, and leaves no file, if not all messages could be read.
    """
    queues, filter_, part = DeadLetterQueues(ctx.obj.app), Filter(**criteria), _part_of(path)
    if path.exists():
        raise click.ClickException(f"{path} exists. Name another file.")
    written, is_whole = 0, True
    with deferred() as is_interrupted, _created(part) as lines:
        pace = Pace(None, 0, is_interrupted)
        for queue in queues.select(filter_.queue):
            left = None if limit is None else limit - written
            with queues.reading(queue, is_interrupted, left) as reader:
                for message in islice(matching(reader, filter_), left):
                    lines.write(line_of(message, queue.url).encode() + b"\n")
                    written += 1
                    pace.count(1)
            is_whole = is_whole and not (reader.is_out_of_time or reader.is_full)
        lines.flush()
        os.fsync(lines.fileno())
        pace.end()
    if is_interrupted() or not is_whole:
        part.unlink()
        raise click.ClickException("Not all messages were read. There is no file.")
    os.replace(part, path)
    print_note(f"{written} exported.")


@click.command("import", epilog="Example: celery -A app sqs dlq import letters.jsonl")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--rate", type=Rate(), help="Most messages a second.")
@click.option("--dry-run", is_flag=True, help="Check the file, and send nothing.")
@click.option("--unrecorded", is_flag=True, help="Work without the control database.")
@click.pass_context
def import_(
    ctx: click.Context, /, path: Path, rate: float | None, dry_run: bool, unrecorded: bool
) -> None:
    """Send the dead letters of a file to their dead-letter queue again.

    All lines are checked first; if one is wrong, nothing is sent. FILE.imported says which lines
    SQS accepted, so that a further run goes on there. If FILE has other lines by now, all of them
    are sent. If the command was killed, up to ten messages may be sent twice; a redrive drops such
    duplicates. To import a file a second time, delete FILE.imported.

    Exits with status 1 if a message was not sent, or if the command was interrupted.
    """
    queues = DeadLetterQueues(ctx.obj.app)
    urls = {name_of(queue.url): queue.url for queue in queues.select(None)}
    total = _checked(path, urls)
    progress = Progress(path)
    done = progress.lines
    if dry_run or done >= total:
        again = f" To import them again, delete {_journal_of(path)}." if done else ""
        print_note(f"{total} lines, {done} of them imported already.{again}")
        ctx.exit(0)
    with deferred() as is_interrupted, ledger_of(queues.options, is_recorded=not unrecorded) as to:
        pace = Pace(rate, total, is_interrupted)
        letters = islice(letters_in(path), done, None)
        while not is_interrupted() and (ten := list(islice(letters, BATCH))):
            if not pace.wait(len(ten)):
                break
            to.note("import", [letter.id for letter in ten])
            if failed := _send(queues, urls, ten):
                raise click.ClickException(
                    f"SQS did not accept line {done + min(failed) + 1}: {failed[min(failed)]}. "
                    f"{done} of {total} lines are imported. Run the command again; of this line "
                    "and the nine after it, some may be sent twice."
                )
            done += len(ten)
            progress.add(len(ten))
            pace.count(len(ten))
        pace.end()
    print_note(f"{done} of {total} lines are imported.")
    ctx.exit(0 if done == total else 1)


class Progress:
    """The first lines of a file: those that SQS has accepted. FILE.imported has their number and
    their SHA-256, because another file may have got this name since."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run has left for these lines."""
        self._path, self._journal = path, _journal_of(path)
        self._begin()
        with suppress(OSError, ValueError):
            lines, digest = self._journal.read_text().split()
            self._take(int(lines))
            if self._digest.hexdigest() != digest:
                self._begin()
                print_note(f"{self._journal} is about other lines: none of these is imported.")

    def _begin(self) -> None:
        self.lines = self._offset = 0
        self._digest = sha256()

    def add(self, lines: int) -> None:
        """SQS has accepted the next lines."""
        self._take(lines)
        content = f"{self.lines} {self._digest.hexdigest()}\n"
        files.replace(self._journal, content, files.PRIVATE)

    def _take(self, lines: int) -> None:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in islice(file, lines):
                self._digest.update(line)
                self._offset += len(line)
                self.lines += 1


def _checked(path: Path, urls: dict[str, str]) -> int:
    """The number of lines. Raises ClickException if one of them cannot be imported."""
    total = 0
    try:
        for total, letter in enumerate(letters_in(path), 1):
            if letter.dead_letter_queue not in urls:
                raise BadLine(
                    f"line {total}: no dead-letter queue {letter.dead_letter_queue[:80]!r} is "
                    "configured"
                )
    except (BadLine, OSError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise click.ClickException(f"{path}: {why}. Nothing was sent.") from exc
    return total


def _send(queues: DeadLetterQueues, urls: dict[str, str], letters: list[Letter]) -> dict[int, str]:
    """Send up to ten. Returns why some were not sent, by their places."""
    published = Published()
    batch = Batch(published)
    for batch.place, letter in enumerate(letters):
        url = urls[letter.dead_letter_queue]
        outgoing = letter.outgoing(queues.options, url)
        batch.add(Queue(url, queues.driver), outgoing, queues.options.max_message_bytes)
    batch.flush()
    return published.failed


def _created(part: Path) -> IO[bytes]:
    try:
        return files.create(part, files.PRIVATE)
    except OSError as exc:
        raise click.ClickException(f"{part}: {exc.strerror}. Name another file.") from exc


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.imported")
