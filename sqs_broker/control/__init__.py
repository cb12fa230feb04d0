"""The control plane over MongoDB: events, commands, replies and revokes. No queue is made for it.

One capped collection holds everything broadcast, and each reader filters by its own bindings. A
second, small one holds replies until they are read, or expire. Nothing here blocks Celery's event
loop or a task: without MongoDB there are no events, and everything else goes on.
"""
