"""Runs Celery's and kombu's own integration tests on this broker, and compares the failures.

    python -m tests.suites [arguments for pytest]

`expected.toml` lists the failures that are expected, with their reasons. `kombu_sqs.toml` lists
kombu's unit tests of its own SQS transport, which do not run here, beside our tests that hold the
same. The source distributions are taken from the package index at each run, and nothing of them is
kept. Celery's tests need a Redis server for results, which must be installed. All takes half an
hour.
"""
