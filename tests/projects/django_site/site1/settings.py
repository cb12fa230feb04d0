import json
import os

SECRET_KEY = "not a secret"
USE_TZ = True
INSTALLED_APPS = ["django_celery_results", "django_celery_beat", "blog"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.path.join(os.environ["HOME"], "site.sqlite3"),
        "OPTIONS": {"timeout": 20},
    }
}

CELERY_BROKER_TRANSPORT_OPTIONS = json.loads(os.environ["BROKER_OPTIONS"])
CELERY_RESULT_BACKEND = "django-db"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
