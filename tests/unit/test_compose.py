"""docker-compose.yml, Dockerfile and docker/elasticmq.conf: do they agree with the settings?

Where a test runs something, it is as the file has it, but for an address that only a container
has. tests/integration runs what needs a server.
"""

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.api.server import STOP_SECONDS
from app.settings import (
    ApiSettings,
    FlowerSettings,
    Settings,
    get_api_settings,
    get_flower_settings,
)

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKER = SERVICES["worker"]
FLOWER = SERVICES["flower"]
API = SERVICES["api"]
#: What our image runs; the others are of somebody else's.
OURS = {"worker", "flower", "api"}
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in DOCKERFILE if line.startswith(name + " ")]


def health_check(service: str) -> list[str]:
    """The command that the engine runs in the container."""
    kind, *command = SERVICES[service]["healthcheck"]["test"]
    assert kind in {"CMD", "CMD-SHELL"}
    return ["sh", "-c", *command] if kind == "CMD-SHELL" else command


def elasticmq_conf() -> dict[str, Any]:
    """Just so much of HOCON as the file uses."""
    blocks: list[dict[str, Any]] = [{}]
    for line in (ROOT / "docker/elasticmq.conf").read_text().splitlines():
        line = line.strip()
        if line.endswith("{"):
            block: dict[str, Any] = {}
            blocks[-1][line.removesuffix("{").strip()] = block
            blocks.append(block)
        elif line == "}":
            blocks.pop()
        elif " = " in line and not line.startswith("#"):
            key, value = line.split(" = ")
            blocks[-1][key] = value.strip('"')
    (conf,) = blocks
    return conf


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the worker's container reads."""
    for name, value in WORKER["environment"].items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_ours_are_given_only_what_the_settings_declare() -> None:
    declared = {name.upper() for name in Settings.model_fields}
    flowers = {f"FLOWER_{name.upper()}" for name in FlowerSettings.model_fields}
    assert set(WORKER["environment"]) <= declared
    assert set(FLOWER["environment"]) <= declared | flowers
    apis = {f"API_{name.upper()}" for name in ApiSettings.model_fields}
    assert set(API["environment"]) <= declared | apis


def test_the_worker_is_given_all_it_needs(settings: Settings) -> None:
    assert settings.require_worker() is settings
    assert settings.credentials


def test_flower_and_the_api_are_given_what_the_worker_is() -> None:
    own = {"WORKER_HEALTH_FILE"}
    shared = {k: v for k, v in WORKER["environment"].items() if k not in own}
    assert FLOWER["environment"].items() >= shared.items()
    assert API["environment"].items() >= shared.items()


def test_flower_comes_without_a_login_of_its_own() -> None:
    # Without one, the engine stops with this text, and nothing starts.
    assert re.fullmatch(
        r"\$\{FLOWER_BASIC_AUTH:\?[\w ,]+user:password\}",
        FLOWER["environment"]["FLOWER_BASIC_AUTH"],
    )


def test_the_api_comes_without_a_key_of_its_own() -> None:
    assert re.fullmatch(r"\$\{API_KEYS:\?[\w ,:./()]+\}", API["environment"]["API_KEYS"])


def with_defaults(value: str) -> str:
    """A value as the engine fills it in if the user has set none of its variables."""
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value)


def test_the_api_is_published_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in API["environment"].items():
        monkeypatch.setenv(name, with_defaults(value))
    settings = get_api_settings()
    (port,) = API["ports"]
    assert port == f"127.0.0.1:{settings.port}:{settings.port}"
    assert settings.address == "0.0.0.0"
    assert f"http://127.0.0.1:{settings.port}/healthz" in health_check("api")[-1]


def test_the_api_is_given_the_time_that_a_stop_takes() -> None:
    grace = int(API["stop_grace_period"].removesuffix("s"))
    assert grace >= STOP_SECONDS + ApiSettings().send_timeout


def test_what_flower_has_seen_is_on_a_volume_that_its_user_may_write() -> None:
    (variable,) = (line for line in instructions("ENV") if line.startswith("FLOWER_DB="))
    directory = Path(variable.removeprefix("FLOWER_DB=")).parent
    (mount,) = FLOWER["volumes"]
    volume, inside = mount.split(":")
    assert volume in COMPOSE["volumes"]
    assert inside == str(directory)
    (user,) = instructions("USER")
    owner, group = user.split(":")
    made = f"install --directory --owner {owner} --group {group} --mode 700 {directory}"
    assert any(made in line for line in instructions("RUN"))


def test_the_processes_are_the_same_everywhere() -> None:
    lines = (ROOT / "Procfile").read_text().splitlines()
    commands = {
        name: shlex.split(command) for name, _, command in (s.partition(": ") for s in lines)
    }
    # A container runs one of them, so none is beside another.
    prefix = ["python", "-m", "app.beside"]
    alone = {n: c[3:] if c[:3] == prefix else c for n, c in commands.items()}
    assert {name: SERVICES[name]["command"] for name in OURS} == alone
    assert instructions("CMD") == [json.dumps(commands["worker"])]


def test_flower_is_published_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FLOWER["environment"].items():
        monkeypatch.setenv(name, value)
    settings = get_flower_settings()
    (port,) = FLOWER["ports"]
    assert port == f"127.0.0.1:{settings.port}:{settings.port}"
    assert settings.address == "0.0.0.0"
    assert f"http://127.0.0.1:{settings.port}/healthcheck" in health_check("flower")[-1]


def test_the_worker_command_is_found() -> None:
    program, *arguments = WORKER["command"]
    outcome = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments, "--help"],
        cwd=ROOT,
        env={"PATH": os.defpath, **WORKER["environment"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "--concurrency" in outcome.stdout


def test_hosts_in_the_environment_are_services() -> None:
    hosts = re.findall(r"://([^:/]+):(\d+)", " ".join(WORKER["environment"].values()))
    assert hosts
    for host, port in hosts:
        assert host in WORKER["depends_on"]
        assert [p.rsplit(":", 1)[1] for p in SERVICES[host]["ports"]] == [port]


@pytest.mark.parametrize("name", sorted(OURS))
def test_ours_wait_until_what_they_need_is_healthy(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {
        other: {"condition": "service_healthy"} for other in SERVICES if other not in OURS
    }


def test_the_worker_is_given_the_time_that_a_stop_takes(settings: Settings) -> None:
    # docs/shutdown.md: what a stop takes beyond its deadline at the most.
    grace = int(WORKER["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.worker_shutdown_timeout + 25


def test_queues_are_declared_as_the_settings_expect(settings: Settings) -> None:
    conf = elasticmq_conf()
    (name,) = settings.queues
    queue = conf["queues"][name]
    assert queue["defaultVisibilityTimeout"] == f"{settings.visibility_timeout} seconds"
    assert queue["deadLettersQueue"] == {
        "name": str(settings.aws_sqs_dlq_url).rsplit("/", 1)[-1],
        "maxReceiveCount": str(settings.sqs_max_receive_count),
    }
    assert set(conf["queues"]) == {name, queue["deadLettersQueue"]["name"]}


def test_queue_urls_are_those_of_the_server(settings: Settings) -> None:
    conf = elasticmq_conf()
    assert conf["aws"]["region"] == settings.aws_region
    for url in (settings.aws_sqs_queue_url, settings.aws_sqs_dlq_url):
        base = f"{settings.aws_endpoint_url}/{conf['aws']['accountId']}/"
        assert str(url).startswith(base)


def test_ports_are_published_on_loopback_only() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


def test_the_replica_set_is_named_alike(settings: Settings) -> None:
    command = SERVICES["mongodb"]["command"]
    name = command[command.index("--replSet") + 1]
    assert f'_id: "{name}"' in health_check("mongodb")[-1]
    assert settings.require_mongo_uri().endswith(f"?replicaSet={name}")


def test_mounted_and_copied_files_are_there_and_let_in() -> None:
    (mount,) = SERVICES["sqs"]["volumes"]
    assert (ROOT / mount.split(":")[0]).is_file()
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copies = [copy.split()[:-1] for copy in instructions("COPY") if not copy.startswith("--from")]
    copied = [name for names in copies for name in names]
    assert sorted(copied) == sorted(let_in)
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_image_does_not_run_as_root() -> None:
    (user,) = instructions("USER")
    assert not user.startswith(("0", "root"))


def test_ours_run_under_an_init() -> None:
    assert instructions("ENTRYPOINT") == ['["tini", "-s", "--"]']
    assert any("apt-get install" in line and " tini " in line for line in instructions("RUN"))
    assert [name for name in OURS if not SERVICES[name]["init"]] == []


def test_the_check_of_the_worker_reads_the_file_that_the_worker_writes() -> None:
    assert health_check("worker") == ["sqs-health", WORKER["environment"]["WORKER_HEALTH_FILE"]]


def test_every_service_has_a_health_check() -> None:
    assert [name for name in SERVICES if not health_check(name)] == []


class Elasticmq(http.server.BaseHTTPRequestHandler):
    """Answers as ElasticMQ does to a query by GET: 400 for a queue that it has not."""

    queues: tuple[str, ...] = ()

    def do_GET(self) -> None:
        known = [f"/?Action=GetQueueUrl&QueueName={name}" for name in self.queues]
        self.send_response(200 if self.path in known else 400)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def elasticmq() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Elasticmq) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.skipif(not shutil.which("wget"), reason="wget is in the image, and not here")
def test_sqs_is_healthy_once_its_queue_is_there(
    elasticmq: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = f"127.0.0.1:{elasticmq.server_port}"
    check = [word.replace("127.0.0.1:9324", here) for word in health_check("sqs")]
    assert subprocess.run(check).returncode != 0
    monkeypatch.setattr(Elasticmq, "queues", tuple(elasticmq_conf()["queues"]))
    assert subprocess.run(check).returncode == 0
