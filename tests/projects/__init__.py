"""Celery projects of other people, as their documentation shows them, with `install` added. Each is
run in a process of its own, from its folder. Its options are in the variable BROKER_OPTIONS.
"""
