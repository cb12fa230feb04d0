"""Services of docker-compose.yml as processes of this machine.

Command, environment and health check are as the file has them, but for addresses and process ids,
which only a container has.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from devstack import mongo, ports
from tests.services import wait_until

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
    "services"
]
START_SECONDS = 30


@pytest.mark.slow
def test_the_worker_is_healthy_once_it_has_started_and_stops_when_told(
    environment: dict[str, str], tmp_path: Path
) -> None:
    worker = SERVICES["worker"]
    machine = {name: environment[name] for name in ("PATH", "HOME", "PYTHONPATH")}
    addresses = {name: environment[name] for name in worker["environment"] if name in environment}
    health_file = {"WORKER_HEALTH_FILE": str(tmp_path / "health.json")}
    assert health_file.keys() <= worker["environment"].keys()
    variables = machine | worker["environment"] | addresses | health_file
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        main = subprocess.Popen(
            worker["command"],
            env=variables,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    kind, *check = worker["healthcheck"]["test"]
    assert kind == "CMD"
    in_the_container = worker["environment"]["WORKER_HEALTH_FILE"]
    assert in_the_container in check
    check = [variables["WORKER_HEALTH_FILE"] if w == in_the_container else w for w in check]

    def is_healthy() -> bool:
        return (
            subprocess.run(
                check, env=variables, cwd=tmp_path, stdout=subprocess.DEVNULL, timeout=60
            ).returncode
            == 0
        )

    try:
        wait_until(lambda: " ready." in log.read_text(), START_SECONDS, "a ready worker")
        assert is_healthy()
        main.send_signal(signal.SIGTERM)
        assert main.wait(int(worker["stop_grace_period"].removesuffix("s")) - 30) == 0
        assert not is_healthy()
    finally:
        if main.poll() is None:
            os.killpg(main.pid, signal.SIGKILL)
            main.wait()


def test_flower_is_healthy_once_it_listens_and_stops_when_told(
    environment: dict[str, str], tmp_path: Path
) -> None:
    flower = SERVICES["flower"]
    port = str(ports.preferred_or_any(None))
    machine = {name: environment[name] for name in ("PATH", "HOME", "PYTHONPATH")}
    addresses = {name: environment[name] for name in flower["environment"] if name in environment}
    # The login is whoever's starts it; on this machine it listens on loopback only.
    given = {"FLOWER_BASIC_AUTH": "kim:hunter2", "FLOWER_ADDRESS": ports.HOST, "FLOWER_PORT": port}
    log = tmp_path / "flower.log"
    with log.open("wb") as output:
        main = subprocess.Popen(
            flower["command"],
            env=machine | flower["environment"] | addresses | given,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    kind, *command = flower["healthcheck"]["test"]
    assert kind == "CMD"
    check = [word.replace(":5555/", f":{port}/") for word in command]

    def is_healthy() -> bool:
        assert main.poll() is None, log.read_text()
        return subprocess.run(check, env=machine, stderr=subprocess.DEVNULL).returncode == 0

    try:
        wait_until(is_healthy, START_SECONDS, "a healthy Flower")
        main.send_signal(signal.SIGTERM)
        assert main.wait(START_SECONDS) == 0
        assert subprocess.run(check, env=machine, stderr=subprocess.DEVNULL).returncode != 0
    finally:
        main.kill()
        main.wait()


@pytest.mark.skipif(
    not (shutil.which("mongosh") or os.environ.get("CI")),
    reason="mongosh is in the image, and not here; .ci/run installs it",
)
def test_the_health_check_of_mongodb_makes_the_replica_set(tmp_path: Path) -> None:
    service = SERVICES["mongodb"]
    port = str(ports.preferred_or_any(None))
    kind, mongosh, *arguments, script = service["healthcheck"]["test"]
    assert kind == "CMD"
    here = script.replace("mongodb:27017", f"{ports.HOST}:{port}")
    check = [mongosh, "--port", port, *arguments, here]
    # On this machine it listens on loopback only.
    command = [word for word in service["command"][1:] if word != "--bind_ip_all"]
    command += ["--bind_ip", ports.HOST, "--port", port, "--dbpath", str(tmp_path)]
    with (tmp_path / "mongod.log").open("wb") as log:
        server = subprocess.Popen([mongo.find_binary(), *command], stdout=log)
    try:
        wait_until(lambda: subprocess.run(check).returncode == 0, START_SECONDS, "a replica set")
    finally:
        server.kill()
        server.wait()
    assert subprocess.run(check).returncode != 0
