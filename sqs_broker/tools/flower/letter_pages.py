"""Flower's page "Dead letters". It reads only on request, because a read hides the messages."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import click
from tornado.web import HTTPError, authenticated, url

from sqs_broker.errors import label
from sqs_broker.options import Options
from sqs_broker.rules.bounded_pattern import Unbounded, compiled
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.tools.commands.dead_letter_queues import Filter
from sqs_broker.tools.commands.durations import Duration
from sqs_broker.tools.edit import EditError
from sqs_broker.tools.flower.guarded import Action, Guarded, refusal
from sqs_broker.tools.flower.letters import PAGE, Letters, masked
from sqs_broker.worker.defaults import uses_sqs

logger = logging.getLogger(__name__)

TEMPLATE = str(Path(__file__).with_name("dead_letters.html"))

#: Threads of their own: a slow SQS must not occupy Flower's threads, which wait for workers.
_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sqs-letters")

#: The fields of the filter, and their labels.
FIELDS = {
    "id": "Id",
    "task": "Task (glob)",
    "error": "Error (glob)",
    "reason": "Part of the reason",
    "older_than": "Older than (2h)",
    "match": "Regular expression",
}

#: What the number must be typed for.
CHANGES = ("redrive", "purge")


@cache
def letters_of(celery_app: Any) -> Letters:
    """The dead letters of a Celery app on this broker."""
    options = Options.read(celery_app.conf.broker_transport_options)
    return Letters(options, driver_for(options))


class LettersHandler(Guarded):
    """What the requests of the page share."""

    @property
    def letters(self) -> Letters:
        """Those of the app. Raises HTTPError if it has another broker."""
        if not uses_sqs(self.application.capp):
            raise HTTPError(404, "This app does not use the SQS broker")
        return letters_of(self.application.capp)

    def show(self, view: str, **given: Any) -> None:
        """Render one view of the page."""
        letters = self.letters
        self.render(
            TEMPLATE,
            view=view,
            fields=FIELDS,
            snapshot=letters.snapshot,
            job=letters.job,
            is_read_only=self.is_read_only,
            has_login=self.has_login,
            **given,
        )


class ListPage(LettersHandler):
    """The snapshot, and what runs."""

    @authenticated
    def get(self) -> None:
        """Show what was read last. Reads nothing."""
        snapshot = self.letters.snapshot
        last = max((len(snapshot) - 1) // PAGE, 0) if snapshot else 0
        page = min(max(_number(self.given("page")), 0), last)
        self.show("list", page=page, last=last, rows=snapshot.page(page) if snapshot else [])


class LettersAction(LettersHandler, Action):
    """What the buttons of the page share."""

    page = "dead-letters"


class ReadAction(LettersAction):
    """Makes a new snapshot."""

    @authenticated
    def post(self) -> None:
        """Begin to read."""
        self.require_login()
        if not self.letters.read(self._filter(), self.user()):
            raise HTTPError(409, "Another job runs")
        self.redirect(self.reverse_url("dead-letters"))

    def _filter(self) -> Filter:
        given = {name: self.given(name).strip() or None for name in FIELDS}
        try:
            match = compiled(given["match"]) if given["match"] else None
        except Unbounded as exc:
            raise refusal(400, f"Regular expression: {exc}") from exc
        older: timedelta | None = None
        try:
            if given["older_than"]:
                older = Duration().convert(given["older_than"], None, None)
        except click.ClickException as exc:
            raise refusal(400, f"Older than: {exc.message}") from exc
        return Filter(
            ids=(given["id"],) if given["id"] else (),
            task=given["task"],
            error=given["error"],
            reason=given["reason"],
            older_than=older,
            match=match,
        )


class ConfirmAction(LettersAction):
    """Asks for the number."""

    @authenticated
    def post(self) -> None:
        """Show what would be done to how many."""
        self.require_login()
        action = self.given("action")
        if action != "dry run":
            self.require_changes()
        chosen = _chosen(self)
        number = _count(self.letters, chosen)
        if action == "dry run":
            if not self.letters.redrive(chosen, self.user(), is_dry=True):
                raise HTTPError(409, "Another job runs")
            self.redirect(self.reverse_url("dead-letters"))
            return
        if action not in CHANGES or not number:
            raise HTTPError(400, "Nothing is selected")
        self.show("confirm", action=action, chosen=chosen, number=number)


class RunAction(LettersAction):
    """Redrives or deletes."""

    @authenticated
    def post(self) -> None:
        """Begin, if the typed number is the right one."""
        self.require_login()
        self.require_changes()
        chosen, letters = _chosen(self), self.letters
        if self.given("typed").strip() != str(_count(letters, chosen)):
            raise HTTPError(400, "The number is not the right one. Nothing was done")
        match self.given("action"):
            case "redrive":
                began = letters.redrive(chosen, self.user(), is_dry=False)
            case "purge":
                began = letters.purge(chosen, self.user())
            case _:
                raise HTTPError(400, "There is no such action")
        if not began:
            raise HTTPError(409, "Another job runs")
        self.redirect(self.reverse_url("dead-letters"))


class ShowAction(LettersAction):
    """Shows one dead letter, masked until asked for."""

    @authenticated
    async def post(self) -> None:
        """Read it from the queue."""
        self.require_login()
        sqs_id, is_plain = self.given("letter"), self.given("plain") == "yes"
        letters, by = self.letters, self.user()
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(_threads, letters.find, sqs_id)
            if found is None:
                raise HTTPError(404, "It is not there, or another reader has hidden it")
            if is_plain:
                self.require_changes()
                await loop.run_in_executor(
                    _threads, letters.note, "show", [found.content["id"]], by
                )
                _log_shown(by, found.content["id"])
        except click.ClickException as exc:
            raise refusal(502, exc.message) from exc
        shown = found.content if is_plain else masked(found.content)
        text = json.dumps(shown, ensure_ascii=False, indent=2, default=str)
        form = found.form if is_plain else None
        attempts = found.attempts
        self.show("show", sqs_id=sqs_id, text=text, is_plain=is_plain, form=form, attempts=attempts)


class EditAction(LettersAction):
    """Redrives one dead letter with another body."""

    @authenticated
    async def post(self) -> None:
        """Check the body, and send it if that was confirmed."""
        self.require_login()
        self.require_changes()
        sqs_id, text = self.given("letter"), self.given("body")
        kept_in = self._directory() if self.given("send") == "yes" else None
        loop, app = asyncio.get_running_loop(), self.application.capp
        try:
            tasks = await loop.run_in_executor(_threads, _tasks_of, app)
            done = await loop.run_in_executor(
                _threads, self.letters.edit, sqs_id, text, self.user(), tasks, kept_in
            )
        except EditError as exc:
            raise refusal(400, str(exc)) from exc
        except click.ClickException as exc:
            raise refusal(502, exc.message) from exc
        if done is None:
            raise HTTPError(404, "It is not there, or another reader has hidden it")
        self.show("edit", sqs_id=sqs_id, text=text, edit=done)

    def _directory(self) -> Path:
        # Flower may write there, and what is there survives a restart.
        return Path(self.application.options.db).absolute().parent


def _tasks_of(celery_app: Any) -> Mapping[str, Any]:
    try:
        celery_app.loader.import_default_modules()
    except Exception as exc:
        # Broad on purpose: the modules are those of a project.
        why = f"the tasks cannot be imported ({label(exc)}). Nothing is sent."
        raise click.ClickException(why) from exc
    tasks: Mapping[str, Any] = celery_app.tasks
    return tasks


def _log_shown(by: str, id_: str) -> None:
    logger.warning(
        "%s was shown a dead letter with its personal data.",
        by,
        extra={"event": "dead_letter.shown", "message_id": id_, "reason": by},
    )


def _chosen(handler: Any) -> Sequence[str] | None:
    """The selected MessageIds; None for all of the snapshot. Raises HTTPError if that is not the
    snapshot that the user saw."""
    if handler.given("scope") == "all":
        snapshot = handler.letters.snapshot
        if snapshot is None or handler.given("snapshot") != snapshot.mark:
            raise HTTPError(409, "The dead letters were read again since. Nothing was done")
        return None
    selected: list[str] = handler.get_arguments("sqs_id")
    return selected


def _count(letters: Letters, chosen: Sequence[str] | None) -> int:
    if chosen is not None:
        return len(set(chosen))
    return len(letters.snapshot) if letters.snapshot else 0


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0


#: The pages, in Flower's form.
HANDLERS = [
    url(r"/dead-letters", ListPage, name="dead-letters"),
    url(r"/dead-letters/read", ReadAction, name="dead-letters-read"),
    url(r"/dead-letters/confirm", ConfirmAction, name="dead-letters-confirm"),
    url(r"/dead-letters/run", RunAction, name="dead-letters-run"),
    url(r"/dead-letters/show", ShowAction, name="dead-letters-show"),
    url(r"/dead-letters/edit", EditAction, name="dead-letters-edit"),
]
