"""`celery -A app sqs …`: what an operator does with the queues.

Data goes to stdout, talk to stderr. Exit status 0: done; 1: a fault, or not all of it was done;
2: a command line that is not understood.
"""

import click

from app.commands import dlq, doctor, health, queues, send


@click.group()
def sqs() -> None:
    """Look after the SQS queues and their dead letters."""


sqs.add_command(queues.command)
sqs.add_command(dlq.command)
sqs.add_command(send.command)
sqs.add_command(doctor.command)
sqs.add_command(health.command)
