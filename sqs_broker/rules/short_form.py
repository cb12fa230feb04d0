"""A task message in fewer characters, for any worker.

SQS's answer has each body as a text of JSON, and the body has the arguments as another one. So a
worker takes most of the time that it spends on the text of a message on its quotation marks and
their backslashes. What is left out is what Celery and this broker read as they would read nothing.
Pure.
"""

from typing import Any

#: The headers that are None in Celery's request if they are missing (celery 5.7 app/task.py,
#: `Context`).
NONE_IF_MISSING = frozenset(
    {"shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers"}
)

#: Celery makes a property of each option of a call (celery 5.7 app/amqp.py). The headers have
#: these, and nothing reads the properties.
IN_HEADERS = frozenset({"argsrepr", "kwargsrepr"})

#: How the body of a message ends that has no callbacks (celery 5.7 app/amqp.py, `as_task_v2`), and
#: the same in short.
NO_CALLBACKS = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
NONE_IN_SHORT = "{}]"


def shortened(message: dict[str, Any]) -> dict[str, Any]:
    """The same kombu message without what no worker reads. One that is not of Celery's protocol 2
    is returned as it is."""
    headers, body = message["headers"], message["body"]
    if "task" not in headers or "id" not in headers:
        return message
    properties = {n: value for n, value in message["properties"].items() if n not in IN_HEADERS}
    if properties.get("body_encoding", NONE_IN_SHORT) is None:
        del properties["body_encoding"]
    return {
        **message,
        "body": body.removesuffix(NO_CALLBACKS) + NONE_IN_SHORT if _is_alone(body) else body,
        "headers": {
            name: value
            for name, value in headers.items()
            if value is not None or name not in NONE_IF_MISSING
        },
        "properties": properties,
    }


def _is_alone(body: Any) -> bool:
    """Whether the task has no callbacks. In JSON no string can end so."""
    return isinstance(body, str) and body.endswith(NO_CALLBACKS)
