"""The only package that reads the environment.

Nothing is read at import. `get_settings()` reads the environment once, and `.env` in the current
directory if it exists. A missing variable is an error only for a process that needs it: a producer
calls `require_queue()`, a worker `require_worker()`.

A producer may be part of another program, whose variables and `.env` mean something else. For such
a process, `get_producer_settings()` reports an invalid value only if a producer needs the variable.
"""

from app.settings.api import ApiSettings
from app.settings.common import (
    DEFAULT_DATABASE,
    HOW_TO_SET,
    VISIBILITY_MARGIN,
    QueueSettings,
    Settings,
)
from app.settings.ecs import EcsSettings
from app.settings.flower import FlowerSettings
from app.settings.function import FunctionSettings, is_function
from app.settings.reading import (
    get_api_settings,
    get_ecs_settings,
    get_flower_settings,
    get_function_settings,
    get_producer_settings,
    get_settings,
    use_mongo_uri,
)

__all__ = [
    "DEFAULT_DATABASE",
    "HOW_TO_SET",
    "VISIBILITY_MARGIN",
    "ApiSettings",
    "EcsSettings",
    "FlowerSettings",
    "FunctionSettings",
    "QueueSettings",
    "Settings",
    "get_api_settings",
    "get_ecs_settings",
    "get_flower_settings",
    "get_function_settings",
    "get_producer_settings",
    "get_settings",
    "is_function",
    "use_mongo_uri",
]
