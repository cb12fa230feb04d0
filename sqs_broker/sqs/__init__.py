"""The way to SQS and back: receive, hold, extend, settle, send. Nothing here knows Celery."""
