"""Tasks that a worker of a run has beside those of the application.

A worker imports these modules by their own names (`celery worker -I`), from this directory: so a
worker of an older commit has them too.
"""
