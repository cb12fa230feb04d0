"""Changes the body of one dead letter by a person: in a private file, checked as a worker would."""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqs_broker.errors import label
from sqs_broker.machine import files
from sqs_broker.machine.private_directory import private_directory
from sqs_broker.options import Options
from sqs_broker.rules.admission import Admitted, admit, arrive
from sqs_broker.rules.decoding import Payload
from sqs_broker.tools.dead_letters import DeadLetterMessage
from sqs_broker.tools.letter_file import line_of

#: The fields of a body that hold another JSON text: kombu's arguments, and what SNS forwards.
NESTED = ("body", "Message")

#: What does not belong into the name of a file.
NOT_PLAIN = re.compile(r"[^A-Za-z0-9-]")


class EditError(ValueError):
    """The body cannot be edited, or the new one cannot be sent. The text has no value of it."""


@dataclass(frozen=True)
class Edited:
    """A dead letter with its new body."""

    message: DeadLetterMessage
    changed: tuple[str, ...]
    """The paths of the fields that differ, without their values."""


def edited(
    message: DeadLetterMessage,
    edit: Callable[[Path], None],
    options: Options,
    tasks: Mapping[str, Any],
) -> Edited:
    """Let `edit` change the body in a file, and check the result.

    Only this user can read the file and its directory; both are removed, whatever happens. Raises
    EditError if the body is not a JSON object, if nothing was changed, or if a worker would not run
    the message. Raises what `edit` raises.
    """
    after = _through_file(form_of(message.delivery.body), edit)
    return changed_to(message, after, options, tasks)


def changed_to(
    message: DeadLetterMessage, text: str, options: Options, tasks: Mapping[str, Any]
) -> Edited:
    """The message with this body, in the form that `form_of` gives. Raises EditError as `edited`
    does."""
    before, after = readable(message.delivery.body), _object(text)
    changed = tuple(sorted(differences(before, after)))
    if not changed:
        raise EditError("Nothing was changed, and nothing is sent.")
    body = written(after, message.delivery.body)
    new = replace(message, delivery=replace(message.delivery, body=body))
    _check(message, new, options, tasks)
    return Edited(new, changed)


def form_of(body: str) -> str:
    """A body as a person edits it. Raises EditError."""
    return _text(readable(body), indent=2) + "\n"


def kept(message: DeadLetterMessage, url: str, directory: Path) -> Path:
    """Write the original to a new file that only this user can read. Returns its path. Raises
    EditError."""
    path = directory / f"dead-letter-{NOT_PLAIN.sub('_', message.delivery.message_id)}.jsonl"
    try:
        files.replace(path, line_of(message, url) + "\n", files.PRIVATE)
    except OSError as exc:
        raise EditError(f"{path}: {exc.strerror}. Nothing was sent.") from exc
    return path


def readable(body: str) -> dict[str, Any]:
    """The JSON object of a body, with the JSON in its nested field decoded. Raises EditError."""
    content = _object(body)
    for name in NESTED:
        if isinstance(text := content.get(name), str) and (inner := _decoded(text)) is not None:
            content[name] = inner[0]
    return content


def written(content: dict[str, Any], original: str) -> str:
    """The body for a content, in the form of the original: nested JSON is text or base64 again."""
    was, new = _object(original), dict(content)
    for name in NESTED:
        if not isinstance(text := was.get(name), str) or isinstance(new.get(name), str):
            continue
        if name in new and (inner := _decoded(text)) is not None:
            nested = _text(new[name])
            new[name] = base64.b64encode(nested.encode()).decode() if inner[1] else nested
    return _text(new)


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The paths at which two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() | after.keys():
            where = f"{path}.{name}" if path else str(name)
            if name not in before or name not in after:
                yield where
            else:
                yield from differences(before[name], after[name], where)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{path}[{place}]")
    elif before != after or type(before) is not type(after):
        yield path or "(all)"


def _through_file(text: str, edit: Callable[[Path], None]) -> str:
    # An editor may write further files beside this one.
    with private_directory("dead-letter-") as directory:
        path = directory / "body.json"
        files.replace(path, text, files.PRIVATE)
        edit(path)
        return _read(path)


def _text(content: Any, indent: int | None = None) -> str:
    """The content as JSON. A lone surrogate stays the escape that it was."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent)
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise EditError("The file was removed. Nothing is sent.") from None
    except UnicodeDecodeError:
        raise EditError("The body is not UTF-8. Nothing is sent.") from None


def _check(
    old: DeadLetterMessage, new: DeadLetterMessage, options: Options, tasks: Mapping[str, Any]
) -> None:
    arrival = arrive(new.delivery, options.decode_json, options.eta_max)
    headers = arrival.headers
    if arrival.ended is not None or headers is None:
        why = getattr(arrival.ended, "reason", None) or type(arrival.ended).__name__
        raise EditError(f"A worker would not run it: {why}. Nothing is sent.")
    was = arrive(old.delivery, options.decode_json, options.eta_max).headers
    if was is not None and headers["id"] != was["id"]:
        raise EditError("The id was changed. A redriven message keeps its id. Nothing is sent.")
    answer = admit(arrival, tasks, options.canvas)
    if not isinstance(answer, Admitted):
        why = getattr(answer, "reason", None) or "it has no such task"
        raise EditError(f"A worker would not run it: {why}. Nothing is sent.")
    _check_arguments(answer.task, arrival.payload, options)


def _check_arguments(task: Any, payload: Payload, options: Options) -> None:
    args, kwargs, _ = payload
    # A project's own task class may have a check of what comes from a queue.
    check: Callable[[Any, Any], object] | None = getattr(task, "check_received", None)
    schema = options.schemas.get(task.name)
    try:
        if check is not None:
            check(args, kwargs)
        if schema is not None:
            schema(*args, **kwargs)
    except (TypeError, ValueError) as exc:
        # Only a check of the task is known to name fields without their values.
        why = str(exc) if check is not None and schema is None else label(exc)
        raise EditError(f"The task refuses the arguments: {why}. Nothing is sent.") from exc


def _object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise EditError("The body is not JSON. Nothing is sent.") from exc
    if not isinstance(content, dict):
        raise EditError("The body is not a JSON object. Nothing is sent.")
    return content


def _decoded(text: str) -> tuple[Any, bool] | None:
    """The JSON in a text, and whether it is in base64; None if there is none."""
    for is_base64 in (False, True):
        try:
            plain = base64.b64decode(text, validate=True).decode() if is_base64 else text
            content = json.loads(plain)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict | list):
            return content, is_base64
    return None
