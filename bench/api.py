"""The HTTP API beside endpoints that send each registration by itself."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from pydantic import TypeAdapter

from bench import processes
from bench.bodies import arguments
from bench.candidates import OURS
from bench.errors import BenchError
from bench.figures import percentile
from bench.http_client import USER, Answers, Load
from bench.lab import Lab, Stage
from bench.results import BatchSent, Lone, Requests
from bench.sender import user_id
from bench.traffic import ROOT
from devstack import ports, sqs
from devstack.process import Process

START_SECONDS = 60
ANSWER_SECONDS = 120

#: The ways to send a registration that a request brings, and the program of each.
API = "this project's API"
SEND_MESSAGE = "one send_message a request"
DELAY = "register_user.delay in a thread"
PROGRAMS: dict[str, Sequence[str]] = {
    API: ("app.api",),
    SEND_MESSAGE: ("bench.endpoints", "send_message"),
    DELAY: ("bench.endpoints", "delay"),
}

PATH = "/registrations"
#: Requests, one after the other, of which the median is told; and those before, which warm up.
LONE, WARM_UP = 60, 10


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    process: Process
    port: int

    def cpu(self) -> float | None:
        """CPU seconds so far."""
        return processes.cpu_below(self.process.guard_pid)


def crowd(
    lab: Lab,
    way: str,
    clients: int,
    delay_ms: float,
    seconds: float,
    rate: float | None = None,
    processes: int = 1,
) -> Requests:
    """Let so many clients register users for so long: each asks again at once, or all together
    `rate` times a second. The API has so many processes. Raises BenchError if none is
    accepted."""
    with (
        lab.stage(OURS, "register", delay_ms, workers=0) as stage,
        serving(stage, way, processes) as server,
    ):
        before = server.cpu()
        answers = _ask(Load(server.port, PATH, _body(USER), clients, seconds, rate=rate))
        after = server.cpu()
        sent = len(stage.proxy.calls())
    if not answers.latencies:
        raise BenchError(f"{way}: no request was accepted: {dict(answers.statuses)}")
    return Requests(
        way=way,
        clients=clients,
        added_ms=delay_ms,
        rate=rate,
        processes=processes,
        seconds=seconds,
        accepted=len(answers.latencies),
        refused=answers.statuses.total() - len(answers.latencies),
        p50=percentile(answers.latencies, 0.5) or 0.0,
        p99=percentile(answers.latencies, 0.99) or 0.0,
        # Of the warm-up, too.
        calls_a_request=sent / answers.all,
        cpu_ms=None if before is None or after is None else (after - before) * 1000 / answers.all,
    )


def lone(lab: Lab, delay_ms: float) -> Lone:
    """Requests to the API one after the other, and in turn with them calls of boto3, so that both
    meet the same machine."""
    with (
        lab.stage(OURS, "register", delay_ms, workers=0) as stage,
        serving(stage, API) as server,
        closing(http.client.HTTPConnection(ports.HOST, server.port, timeout=10)) as connection,
        closing(sqs.client_for(stage.place.sqs_endpoint)) as client,
    ):
        requests, calls = [], []
        for _ in range(WARM_UP + LONE):
            began = time.perf_counter()
            _post(connection, PATH, _body(user_id()), "application/json")
            between = time.perf_counter()
            client.send_message(QueueUrl=stage.place.queues.url, MessageBody=_body(user_id()))
            requests.append(between - began)
            calls.append(time.perf_counter() - between)
    return Lone(median(requests[WARM_UP:]) * 1000, median(calls[WARM_UP:]) * 1000)


def batch(lab: Lab, items: int, delay_ms: float) -> BatchSent:
    """One batch of so many registrations."""
    lines = "".join(f"{_body(user_id())}\n" for _ in range(items))
    with (
        lab.stage(OURS, "register", delay_ms, workers=0) as stage,
        serving(stage, API) as server,
        closing(http.client.HTTPConnection(ports.HOST, server.port, timeout=120)) as connection,
    ):
        began = time.perf_counter()
        answer = _post(connection, f"{PATH}/batch", lines, "application/x-ndjson")
        seconds = time.perf_counter() - began
        progress = stage.proxy.progress()
        calls = len(stage.proxy.calls())
    return BatchSent(items, answer["accepted"], seconds, calls, progress.most_open)


def _post(connection: http.client.HTTPConnection, path: str, body: str, kind: str) -> Any:
    connection.request("POST", path, body.encode(), {"Content-Type": kind})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 202:
        raise BenchError(f"{path}: {answer.status} {content[:200]!r}")
    return json.loads(content)


def _ask(load: Load) -> Answers:
    done = subprocess.run(
        [sys.executable, "-m", "bench.http_client"],
        input=TypeAdapter(Load).dump_json(load),
        capture_output=True,
        cwd=ROOT,
        timeout=load.seconds + load.warm_up + ANSWER_SECONDS,
    )
    if done.returncode:
        raise BenchError(f"the clients failed: {done.stderr.decode()[-500:]}")
    return TypeAdapter(Answers).validate_json(done.stdout)


def _body(user: str) -> str:
    data = arguments(user)
    return json.dumps({"stockId": data["stock_id"], "userId": user, "userInfo": data["user_info"]})


@contextmanager
def serving(stage: Stage, way: str, processes: int = 1) -> Iterator[Server]:
    """The server of a way until the end of the block, with the queue and the database of a
    stage. `processes`: those of the API."""
    port = ports.preferred_or_any(None)
    command = [sys.executable, "-m", *PROGRAMS[way]]
    if way != API:
        command.append(str(port))
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        **OURS.environment(stage.place, stage.task),
        "API_ADDRESS": ports.HOST,
        "API_PORT": str(port),
        "API_PROCESSES": str(processes),
        "PYTHONPATH": str(ROOT),
    }
    log = stage.lab.logs / f"api-{port}.log"
    with Process(
        way, command, log=log, grace=2, environment=environment, directory=stage.lab.logs
    ) as process:
        process.wait_until_listening(port, START_SECONDS)
        yield Server(process, port)
