"""This project's own app, as it ships, with the measured tasks that it does not ship."""

import os

from app.celery import app
from app.tasks import register_user
from bench.work import WORKS

for _name, _function in WORKS.items():
    if _name != "register":  # that is the shipped registerUser
        app.task(name=f"bench.{_name}")(_function)

if os.environ.get("BENCH_BATCHES") == "off":
    register_user.many = None

if os.environ.get("BENCH_EVENTS") == "off":
    app.conf.worker_send_task_events = False
