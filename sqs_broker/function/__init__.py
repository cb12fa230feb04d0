"""Runs the tasks of a Celery app in an AWS Lambda function behind an SQS trigger, by the rules of a
worker. docs/lambda.md describes it.

    from sqs_broker.function import Function

    handler = Function(celery_app)

The mapping from the queue to the function must have `ReportBatchItemFailures`. Otherwise Lambda
deletes the messages that have to be delivered again.
"""

from sqs_broker.function.function import Function
from sqs_broker.function.service import Service

__all__ = ["Function", "Service"]
