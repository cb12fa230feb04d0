"""The commands of `celery -A app sqs` that belong to this application."""
