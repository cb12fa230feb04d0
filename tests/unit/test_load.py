"""The load test: its rates, what it counts, and when it fails. Nothing is sent."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.load import experiment, report, sending
from bench.load.experiment import Side
from bench.load.run import Depth, Measured
from bench.load.sending import Sent
from bench.load.shape import FULL, QUICK, Shape

SCRIPT = sending.SCRIPT.read_text()

SHAPE = Shape(rate=10, spike_rate=30, ramp=2, steady=2, spike=2, rest=1)


def sent(number: int, **changes: Any) -> Sent:
    """A request that came `number` seconds after 1000 s, and was answered after 20 ms."""
    fields = {"user": f"u{number}", "id": f"id-{number}", "status": 202}
    times = {"began": (1000 + number) * 1000.0, "milliseconds": 20.0}
    return Sent(**fields | times | changes)


def measured(**changes: Any) -> Measured:
    """Two requests, both registered: one stored 30 ms after it was accepted, one before."""
    fields: dict[str, Any] = {
        "began": 1000.0,
        "ended": 1001.02,
        "sent": [sent(0), sent(1)],
        "depths": [Depth(1000.0, 2, 1), Depth(1000.5, 0, 0)],
        "states": Counter(registered=2),
        "stored": {"u0": 1000.05, "u1": 1001.01},
        "settled_after": 0.5,
    }
    return Measured(**{"shape": SHAPE, "sender": "k6"} | fields | changes)


def value_of(run: Measured, name: str) -> str:
    return next(row.value for row in report.rows(run) if row.name == name)


def test_the_script_reads_each_number_of_a_shape_and_has_the_same_defaults() -> None:
    read = dict(re.findall(r"number\('(\w+)', (\d+)\)", SCRIPT))

    assert set(FULL.environment()) == set(read) | {"SPIKE_RATE"}
    assert {name: FULL.environment()[name] for name in read} == read
    assert "number('SPIKE_RATE', 3 * rate)" in SCRIPT
    assert FULL.spike_rate == 3 * FULL.rate


def test_the_script_has_the_same_stages_as_a_shape() -> None:
    stages = re.findall(r"\{ duration: (.+?), target: (\w+) \}", SCRIPT)

    lengths = {"RAMP": SHAPE.ramp, "STEADY": SHAPE.steady, "SPIKE": SHAPE.spike, "REST": SHAPE.rest}
    rates = {"rate": SHAPE.rate, "spikeRate": SHAPE.spike_rate}
    in_script = []
    for text, target in stages:
        named, plain = re.search(r"'(\w+)', ", text), re.fullmatch(r"'(\d+)s'", text)
        seconds = int(plain[1]) if plain else lengths[named[1]] if named else None
        in_script.append((seconds, rates[target]))
    assert in_script == SHAPE.stages


def test_requests_are_due_at_the_rates_of_a_shape() -> None:
    due = list(SHAPE.due())

    assert due == sorted(due)
    assert len([at for at in due if 2 <= at < 4]) == pytest.approx(20, abs=1)
    assert len([at for at in due if 5 <= at < 7]) == pytest.approx(60, abs=1)
    assert due[-1] < SHAPE.seconds


@pytest.mark.parametrize("shape", [FULL, QUICK], ids=["full", "quick"])
def test_a_run_is_bounded(shape: Shape) -> None:
    shape.check()


def test_a_quick_run_takes_less_than_a_minute_with_its_start_and_its_end() -> None:
    assert QUICK.seconds <= 20


@pytest.mark.parametrize(
    "changes",
    [{"rate": 100_000}, {"rate": 0}, {"steady": 601}, {"rest": -1}, {"most_clients": 0}],
    ids=repr,
)
def test_a_run_that_is_too_much_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(BenchError):
        replace(SHAPE, **changes).check()


def test_what_k6_itself_writes_between_the_requests_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    line = {"user": "u1", "id": None, "began": 1, "milliseconds": 2, "status": 503, "fault": 1503}
    log.write_text(f"The test has started\n{json.dumps(line)}\n\n{{}}\n")

    assert sending.read(log) == [Sent("u1", None, 1, 2, 503, 1503)]


def test_a_run_in_which_each_accepted_registration_is_final_has_no_fault() -> None:
    refused = sent(2, id=None, status=503)
    both = [sent(0), sent(1), refused]
    run = measured(sent=both, states=Counter(registered=1, failed=1), stored={"u0": 1000.1})

    assert run.faults() == []
    assert "has a final state" in report.verdict(run)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"states": Counter(registered=1, pending=1)}, "1 accepted registrations are not final"),
        ({"states": Counter(registered=1, unknown=1)}, "1 accepted registrations are not final"),
        ({"states": Counter(registered=1)}, "2 were accepted, and 1 have a state"),
        ({"stored": {"u0": 1.0}}, "2 are registered, and 1 are stored"),
        ({"sent": [], "states": Counter(), "stored": {}}, "no registration was accepted"),
    ],
    ids=["pending", "unknown", "missing", "not stored", "none"],
)
def test_a_run_fails_if_a_registration_that_was_accepted_has_not_ended(
    changes: dict[str, Any], fault: str
) -> None:
    run = measured(**changes)

    assert fault in run.faults()
    assert report.verdict(run).startswith("FAILED")


def test_errors_are_counted_by_their_kind() -> None:
    failed = [sent(n, id=None, status=503) for n in (2, 3)]
    silent = sent(4, id=None, status=0, fault=1050)
    run = measured(sent=[sent(0), sent(1), *failed, silent])

    assert run.errors == {"HTTP 503": 2, "no answer (code 1050)": 1}
    assert value_of(run, "errors") == "HTTP 503 2; no answer (code 1050) 1"


def test_the_time_until_a_user_is_stored_begins_with_the_answer() -> None:
    assert report.to_stored(measured()) == pytest.approx([30, 0], abs=0.01)


def test_the_deepest_queue_has_the_messages_in_flight_too() -> None:
    assert value_of(measured(), "queue, most messages") == "3"


def test_the_page_needs_no_other_file_and_has_each_figure() -> None:
    page = report.html(measured(sender="<k6>"), [("A chart", b"png")])

    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert 'src="data:image/png;base64,cG5n"' in page
    assert "<k6>" not in page
    for row in report.rows(measured()):
        assert row.name in page


def test_a_side_of_the_comparison_fails_if_a_message_ran_twice_or_is_a_dead_letter() -> None:
    good = Side("one", {"a": 1, "b": 1}, dead_letters=0, left=0)
    bad = Side("other", {"a": 3, "b": 1}, dead_letters=1, left=0)

    assert good.faults() == []
    assert bad.faults() == ["other: 1 ran 1x, 1 ran 3x", "other: 1 dead letters"]
    assert "| other | 2 | 1 ran 1x, 1 ran 3x | 4 | 1 | 0 |" in experiment.table([good, bad])
