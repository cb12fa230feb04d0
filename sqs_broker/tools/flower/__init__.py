"""Flower's pages for an app on this broker: `celery -A … flower` has them without a setting."""
