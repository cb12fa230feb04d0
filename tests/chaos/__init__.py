"""A fleet of workers under fire: `python -m tests.chaos`, or `make chaos`.

Messages come by all doors while workers are restarted, killed, stopped and replaced by a release
with a new task, calls of SQS fail in every way, and MongoDB fails over, loses its majority, refuses
writes or goes away. What happens when comes from a seed. At the end every message has had its
effect once, as a majority of MongoDB has it; the queue is empty, and the dead-letter queue has only
messages that were to fail, after as many failed runs as they may have. Every worker still asks, and
no process is left.

`--deploys` only replaces workers. CHAOS_OLD=path starts some of them from an older commit.

`--stock` puts stock Celery, with the best settings it has, through the same.
"""
