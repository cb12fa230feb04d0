"""Our pages in place of Flower's. tests/acceptance asks for them."""

from typing import Any

import pytest
from flower.app import rewrite_handler
from flower.urls import handlers
from tornado.routing import URLSpec

from sqs_broker.tools.flower.pages import IN_PLACE_OF, in_place_of


def class_of(handler: Any) -> type:
    return handler.handler_class if isinstance(handler, URLSpec) else handler[1]


def place_of(handler: Any) -> tuple[Any, ...]:
    if isinstance(handler, URLSpec):
        return (handler.regex.pattern, handler.name, handler.kwargs)
    return (handler[0], *handler[2:])


@pytest.mark.parametrize("theirs", IN_PLACE_OF, ids=lambda theirs: theirs.__name__)
def test_flower_has_each_page_that_ours_stands_in_for(theirs: type) -> None:
    ours = [h for h in map(in_place_of, handlers) if class_of(h) is IN_PLACE_OF[theirs]]
    assert len(ours) == 1


def test_all_pages_stay_where_they_are() -> None:
    assert [place_of(in_place_of(handler)) for handler in handlers] == list(map(place_of, handlers))


def test_ours_go_along_below_a_prefix() -> None:
    paths = {
        class_of(moved): place_of(moved)[0]
        for moved in (rewrite_handler(in_place_of(handler), "ops") for handler in handlers)
    }
    assert [paths[ours].removesuffix("$") for ours in IN_PLACE_OF.values()] == [
        "/ops/broker",
        "/ops/api/queues/length",
        "/ops/metrics",
    ]
