"""As Celery's documentation shows it for Django, with `install` added."""

import os

from celery import Celery

from sqs_broker import install

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site1.settings")

app = Celery("site1")
install(app)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
