"""A fleet of workers under fire: `python -m tests.chaos`, or `make chaos`.

Messages come by all doors while workers are restarted, killed and stopped, calls of SQS fail in
every way, and MongoDB fails over, loses its majority, refuses writes or goes away. What happens
when comes from a seed. At the end every message has had its effect once, as a majority of MongoDB
has it; both queues are empty, every worker still asks, and no process is left.

`--stock` puts stock Celery, with the best settings it has, through the same.
"""
