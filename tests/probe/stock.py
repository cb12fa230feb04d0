"""Stands in the probe project where `sqs_broker` stands, and leaves Celery with kombu's own SQS
transport: so the same tasks, with the same settings of Celery, run on either.
"""

import json
from pathlib import Path
from typing import Any

SETTINGS = json.loads((Path(__file__).resolve().parents[1] / "probe.json").read_text())


def install(celery_app: Any) -> None:
    """Name the broker, which kombu takes by its scheme."""
    celery_app.conf.broker_url = SETTINGS["broker_url"]
