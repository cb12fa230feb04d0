"""The time limits of one message: those that its call asked for, as far as its task allows them."""

from collections.abc import Sequence
from math import inf

#: Seconds, or None: the hard limit and the soft one, in the order of Celery's header.
Limits = tuple[float | None, float | None]

#: Seconds that a message has at the least. A process needs tenths of a second to take a job up and
#: to be replaced: a shorter limit would end it before the task has begun, at each delivery.
LEAST = 1.0


def of_message(asked: Sequence[float | None] | None, of_task: Limits) -> Limits:
    """The limits that hold in place of the task's, where the header asks for these; None where the
    task's hold.

    Only a lower limit is one that the call asked for. Celery's producers write those of their own
    settings into each message; the worker's win over these, for its leases are as long as they are.
    """
    hard, soft = (
        _lower(limit, own) for limit, own in zip(asked or (None, None), of_task, strict=True)
    )
    hardest = hard or of_task[0]
    if soft is not None and hardest is not None and soft >= hardest:
        soft = None  # The hard limit comes first.
    return hard, soft


def _lower(limit: float | None, own: float | None) -> float | None:
    # Nothing and less is how Celery writes that there is none.
    if limit is None or not 0 < limit < inf:
        return None
    kept = max(limit, LEAST)
    return kept if kept < (own or inf) else None
