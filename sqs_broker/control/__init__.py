"""The control plane in MongoDB: events, commands, replies and revokes. It uses no SQS queue.

A capped collection holds all events and commands, and each reader filters them by its own bindings.
A second, small collection holds replies until they are read or expire. Nothing here blocks Celery's
event loop or a task: without MongoDB there are no events and no remote control, but tasks run.
"""
