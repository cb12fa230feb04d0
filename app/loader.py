"""Celery's loader, which refuses to serve a Flower that anybody could open.

Flower reads its command line, then asks the loader for the tasks, then listens (flower 2.2
command.py, app.py). So only the loader knows Flower's address and login before Flower listens.
"""

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click
from celery.loaders.app import AppLoader

from app.errors import SettingsError
from app.logs import redirect_prints
from app.settings import Settings, get_ecs_settings, get_producer_settings, get_settings
from sqs_broker.machine import files
from sqs_broker.machine.address import is_loopback
from sqs_broker.options import Options
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import SqsError

_HERE = Path(__file__).resolve().parent

#: The module of the handlers that replace some of Flower's.
OURS = "sqs_broker.tools.flower.pages"


class Loader(AppLoader):
    """Celery's loader of an app. In a Flower process it also checks Flower's settings."""

    def import_default_modules(self) -> Any:
        """Import the tasks. Raises SettingsError if Flower lacks a setting or would be open."""
        if serves_flower():
            from flower.urls import handlers
            from tornado.options import options

            check_credentials(Options.read(self.app.conf.broker_transport_options))
            check_flower(options, [_class_of(handler) for handler in handlers])
        return super().import_default_modules()

    def on_worker_process_init(self) -> None:
        """Log what tasks print. Runs in each process of the pool."""
        redirect_prints(self.app.conf)


def config_file(name: str) -> Path:
    """Path of a configuration file: next to the package in a checkout, inside it in a wheel."""
    inside = _HERE / name
    return inside if inside.exists() else _HERE.parent / name


def required_settings() -> Settings:
    """The settings of this process. Raises SettingsError with all variables that it needs and
    lacks."""
    if _command() is None:
        return get_producer_settings().require_queue()
    settings = get_settings()
    if _command() == "worker":
        get_ecs_settings()
        return settings.require_worker()
    if serves_flower():
        return settings.require_flower()
    try:
        return settings.require_queue()
    except SettingsError:
        context = click.get_current_context(silent=True)
        if context is not None and context.info_name == "doctor":
            settings.require_worker()  # It checks what a worker needs, so it names all.
        raise


def serves_flower() -> bool:
    """Whether this process is `celery -A app flower`."""
    return _command() == "flower"


def _command() -> str | None:
    """The command after `celery -A app`; None in a program of another kind."""
    context = click.get_current_context(silent=True)
    return context.find_root().invoked_subcommand if context is not None else None


def point_flower_home() -> None:
    """Make Flower read this project's flowerconfig.py in any directory. `--conf` and FLOWER_CONF
    override it."""
    if serves_flower():
        from tornado.options import options

        options.conf = str(config_file("flowerconfig.py"))


def check_credentials(options: Options) -> None:
    """Raise ConfigurationError if boto3 cannot use its settings. If it has no credentials yet,
    Flower says so on its page and asks again."""
    with closing(driver_for(options)) as driver, suppress(SqsError):
        driver.open()


def check_flower(options: Any, handlers: list[type]) -> None:
    """Raise SettingsError unless Flower requires a login or only this machine can reach it.

    `options` are Flower's options from all sources.
    """
    _check_login(options)
    open_to = options.unix_socket or options.address
    if not (options.unix_socket or is_loopback(options.address) or _has_login(options)):
        raise SettingsError(
            f"Flower would listen on {open_to or 'every address'} without a login. Set "
            "FLOWER_BASIC_AUTH=user:password, or FLOWER_AUTH and FLOWER_AUTH_PROVIDER; "
            "or set FLOWER_ADDRESS=127.0.0.1."
        )
    if not any(handler.__module__ == OURS for handler in handlers):
        raise SettingsError(
            f"With {options.conf}, /metrics needs no login. "
            f"Add `from app.flower import install; install()` to that file, or omit --conf."
        )
    _check_state(options)


def _is_login(text: str) -> bool:
    user, _, password = text.partition(":")
    return bool(user and password)


def _has_login(options: Any) -> bool:
    return bool(options.basic_auth or options.auth)


def _check_login(options: Any) -> None:
    if not all(map(_is_login, options.basic_auth or ())):
        # Flower would accept an empty login (flower 2.2 views/__init__.py).
        raise SettingsError(
            "FLOWER_BASIC_AUTH: a login is user:password, and neither part may be empty. "
            "Separate several logins with commas."
        )
    if bool(options.auth) != bool(options.auth_provider):
        # With only a provider, Flower requires no login.
        given, missing = ("AUTH", "AUTH_PROVIDER") if options.auth else ("AUTH_PROVIDER", "AUTH")
        raise SettingsError(f"FLOWER_{given} needs FLOWER_{missing}. Set both (docs/flower.md).")


def _check_state(options: Any) -> None:
    directory = Path(options.db).absolute().parent
    if options.persistent and not os.access(directory, os.W_OK | os.X_OK):
        raise SettingsError(
            f"FLOWER_DB: Flower cannot write its state to {directory}. "
            "Create that directory and let this user write to it, or set another file."
        )
    # Flower unpickles this file.
    if options.persistent and (why := files.fault(Path(options.db))):
        raise SettingsError(
            f"FLOWER_DB: {why}. Set it to a file in a directory that only this user may write to."
        )


def _class_of(handler: Any) -> type:
    # Flower's list has both tornado's `url` objects and plain tuples.
    found: type = handler[1] if isinstance(handler, tuple) else handler.handler_class
    return found
