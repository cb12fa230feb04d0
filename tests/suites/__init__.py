"""Runs Celery's own integration tests on this broker, and compares with the expected failures.

    python -m tests.suites [arguments for pytest]

Celery's source distribution is taken from the package index at each run, and nothing of it is kept.
A Redis server, which the tests need for results, must be installed. It takes about half an hour.
"""
