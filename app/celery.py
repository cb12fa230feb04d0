"""The Celery app that `celery -A app worker` uses.

The import reads no environment and opens no connection: the settings are read when Celery first
needs its configuration. The app does not become the current app of a program that imports it.
"""

import runpy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from celery import Celery

from app.loader import config_file, point_flower_home
from app.logs import use_json_lines
from app.typed_task import CANVAS, TypedTask, refuse_unknown
from sqs_broker import install


@cache
def celeryconfig() -> dict[str, Any]:
    """The settings in celeryconfig.py. Cached, because Celery may call this for each setting.

    The file is found by its path, not imported by name, because a program that imports `app` may
    have its own module `celeryconfig`.
    """
    found = runpy.run_path(str(config_file("celeryconfig.py")))
    return {name: value for name, value in found.items() if _is_setting(name, value)}


class Config(Mapping[str, Any]):
    """The settings in celeryconfig.py, which is read once Celery needs one of them. A mapping of
    its own, because Celery looks at several at each message, and a proxy is slow."""

    def __getitem__(self, name: str) -> Any:
        return celeryconfig()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(celeryconfig())

    def __len__(self) -> int:
        return len(celeryconfig())


def _is_setting(name: str, value: Any) -> bool:
    return name.islower() and name[0] != "_" and not callable(value)


class Registrations(Celery):
    """A Celery app with private tasks. By default Celery adds tasks to every app of a process."""

    def task(self, *args: Any, **options: Any) -> Any:
        """Celery's decorator, with `shared=False` as the default."""
        return super().task(*args, **{"shared": False, **options})

    def send_task(
        self, name: str, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """Send a task by its name. If this app has the task, the arguments are checked as `.delay`
        checks them. The tasks that are to follow may not have all arguments yet: of theirs, only
        unknown fields are refused. Raises InvalidMessage and sends nothing."""
        if name not in self.tasks:
            self.loader.import_default_modules()
        following = [options[option] for option in CANVAS if options.get(option)]
        if following and not options.get("parent_id"):
            refuse_unknown(following, self.tasks)
        task = self.tasks.get(name)
        if isinstance(task, TypedTask) and options.get("task_type") is None:
            options = task.checked(args, kwargs, options)
        return super().send_task(name, args, kwargs, *rest, **options)


app = Registrations(
    "app",
    include=["app.tasks"],
    task_cls="app.typed_task:TypedTask",
    loader="app.loader:Loader",
    set_as_current=False,
)
install(
    app,
    commands=[
        "app.commands.send:command",
        "app.commands.provision:command",
        "app.commands.health:command",
    ],
    checks=["app.commands.doctor:check"],
    traces=["app.commands.trace:trace"],
)
app.config_from_object(Config())
# The application's own checks include these, and name its variables.
app.steps["worker"].discard("sqs_broker.tools.startup:StartChecks")
# By name: a producer needs neither them nor MongoDB's driver, which they load.
app.steps["worker"] |= {
    "app.startup:StartChecks",
    "app.outcomes.flush:OutcomeFlush",
    "app.metrics:MetricsFlush",
}
app.steps["consumer"].add("app.outage:OutageWatch")
use_json_lines()
point_flower_home()
