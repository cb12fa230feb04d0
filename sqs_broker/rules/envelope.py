"""kombu's envelope around a task: each part that Celery 5.7 reads, with the types that it accepts.

A malformed header ends a stock worker (celery 5.7 worker/request.py).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Most characters of a message id. Logs show it, and it is stored as a key.
LONGEST_ID = 255

Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
Seconds = Annotated[int | float, Field(ge=0, allow_inf_nan=False)]


class Signature(BaseModel):  # type: ignore[no-redef]  # the plugin's **kwargs meets our alias
    """A task to call after this one."""

    model_config = ConfigDict(extra="allow", strict=True)

    task: Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
    positional: list[Any] = Field([], alias="args")
    named: dict[str, Any] = Field({}, alias="kwargs")
    options: dict[str, Any]


class Embed(BaseModel):
    """The canvas of a task: the tasks that follow it.

    The pool process copies each key of it into the task's request (celery 5.7 app/trace.py).
    Another key could falsify the message's origin and its number of deliveries, so it is refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    callbacks: list[Signature] | None = None
    errbacks: list[Signature] | None = None
    chain: list[Signature] | None = None
    chord: Signature | None = None


class Headers(BaseModel):
    """The headers that Celery 5.7 reads, with the types that it accepts.

    The task also gets the other headers, except those that would overwrite an attribute of Celery's
    request.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    task: Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
    id: Id
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    shadow: str | None = None
    eta: str | None = None
    expires: str | None = None
    timelimit: Annotated[list[Seconds | None], Field(min_length=2, max_length=2)] | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    compression: Literal["application/x-gzip"] | None = None
    origin: str | None = None
    headers: dict[str, Any] | None = None


class Properties(BaseModel):
    """The properties of kombu's envelope that this project reads."""

    model_config = ConfigDict(extra="allow", strict=True)

    body_encoding: Literal["base64", "utf-8"] | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None


class Envelope(BaseModel):
    """The message in which kombu sends a task (kombu 5.7 transport/virtual/base.py)."""

    model_config = ConfigDict(extra="allow", strict=True)

    body: str
    headers: Headers
    properties: Properties
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
