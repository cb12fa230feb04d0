"""The commands of `celery -A app sqs` that know this application."""
