"""Calls to SQS: receive messages, extend their leases, settle and send them. Knows no Celery."""
