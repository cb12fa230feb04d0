"""The measured tasks in this project's own app: its celeryconfig.py, its log, its start checks."""

from app.celery import app
from bench.work import WORKS

for _name, _function in WORKS.items():
    app.task(name=f"bench.{_name}")(_function)
