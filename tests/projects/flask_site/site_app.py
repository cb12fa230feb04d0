"""The factory of Flask's documentation (https://flask.palletsprojects.com/en/stable/patterns/celery/)
with `install` added.
"""

import json
import os
from pathlib import Path

from celery import Celery, Task, shared_task
from flask import Flask, current_app

from sqs_broker import install


def celery_init_app(app: Flask) -> Celery:
    """Make the Celery app of a Flask app."""

    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    install(celery_app)
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def create_app() -> Flask:
    """Make the Flask app."""
    app = Flask("site")
    app.config.from_mapping(
        GREETING="hello",
        CELERY={
            "broker_transport_options": json.loads(os.environ["BROKER_OPTIONS"]),
            "task_ignore_result": True,
        },
    )
    app.config.from_prefixed_env()
    celery_init_app(app)
    return app


@shared_task(ignore_result=False, bind=True)
def add_together(self, a: int, b: int) -> int:
    """Fails once, and reads what only a Flask app context has."""
    if self.request.retries == 0:
        raise KeyError("once")
    with (Path(os.environ["HOME"]) / "said").open("a") as file:
        file.write(f"{current_app.config['GREETING']} {a + b}\n")
    return a + b


flask_app = create_app()
celery_app = flask_app.extensions["celery"]
