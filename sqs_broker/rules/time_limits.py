"""The time limits of one message: its call may lower those of its task, not raise them."""

from collections.abc import Sequence
from math import inf

#: The hard limit and the soft limit, in seconds or None, in the order of Celery's header.
Limits = tuple[float | None, float | None]

#: Shortest time limit of a message, in seconds. A process needs tenths of a second to start a job
#: and to be replaced. A shorter limit would end each delivery before its task begins.
LEAST = 1.0


def of_message(asked: Sequence[float | None] | None, of_task: Limits) -> Limits:
    """The limits to apply to a message whose header has the limits `asked`; None if the limit of
    the task applies.

    Only a lower limit than the task's applies. Celery producers write the limits of their own
    settings into each message. The worker's limits override those, because its leases are made for
    them.
    """
    if not asked or not any(asked):
        return None, None  # Most messages.
    hard, soft = (
        _lower(limit, own) for limit, own in zip(asked or (None, None), of_task, strict=True)
    )
    hardest = hard or of_task[0]
    if soft is not None and hardest is not None and soft >= hardest:
        soft = None  # The hard limit comes first.
    return hard, soft


def _lower(limit: float | None, own: float | None) -> float | None:
    # In Celery's header, 0 and negative numbers mean no limit.
    if limit is None or not 0 < limit < inf:
        return None
    kept = max(limit, LEAST)
    return kept if kept < (own or inf) else None
