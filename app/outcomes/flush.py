"""Writes the last outcomes when a worker stops."""

from typing import Any

from celery import bootsteps

from app.outcomes.observer import observer


class OutcomeFlush(bootsteps.StartStopStep):
    """Is stopped after the consumer, which is always started last and stopped first."""

    def stop(self, worker: Any) -> None:
        """Wait up to two seconds until the outcomes are written."""
        observer.writer.flush()
