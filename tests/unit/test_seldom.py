"""Seldom: what fails again and again is logged once a minute."""

from sqs_broker.machine.seldom import Seldom


def test_a_line_of_one_kind_is_allowed_once_a_minute() -> None:
    seldom = Seldom()
    assert [now for now in (0.0, 20.0, 59.0, 61.0, 100.0, 121.0) if seldom.allows("a", now)] == [
        0.0,
        61.0,
        121.0,
    ]
    assert seldom.allows("b", 121.0)
