"""Celery's side: its transport, consumer, requests and tasks, extended for this broker."""
