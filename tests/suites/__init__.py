"""Runs Celery's and kombu's own integration tests on this broker, and compares the failures.

    python -m tests.suites [arguments for pytest]

`expected.toml` lists the failures that are expected, with their reasons. Any other test that failed
is run again by itself, with new servers: if it passes then, the run says so, and it is no fault. So
it is for a test whose time was short on a busy machine, or that found what another one left. Each
test may take ten minutes, in place of its own limit. `kombu_sqs.toml` lists
kombu's unit tests of its own SQS transport, which do not run here, beside our tests that hold the
same. The source distributions are taken from the package index at each run, and nothing of them is
kept. Celery's tests need a Redis server for results, which must be installed. All takes half an
hour.
"""
