"""The API keeps what its OpenAPI document says, by a tool that tries to show otherwise."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api.keys import Scope, new_key
from tests.acceptance.api_process import Api, apis
from tests.acceptance.worker import ROOT, Place, Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_000)]

SCHEMATHESIS = ROOT / ".tools" / "bin" / "schemathesis"
CONFIG = Path(__file__).with_name("schemathesis.toml")
#: Seconds of a run, and of one by hand: `make verify ARGS="--long -k api_schema"`.
SECONDS, LONG_SECONDS = 12, 600
PHASES = "examples,coverage,fuzzing,stateful"


@pytest.fixture
def key() -> tuple[str, str]:
    """A key that may do everything, and its entry for API_KEYS."""
    return new_key("schema", list(Scope))


@pytest.fixture
def api(where: Place, key: tuple[str, str], tmp_path: Path) -> Iterator[Api]:
    """An API that asks for keys."""
    with apis(tmp_path) as start:
        yield start({**where.environment, "API_KEYS": key[1]})


def test_schemathesis_finds_nothing(
    api: Api,
    key: tuple[str, str],
    service: Service,
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    if not SCHEMATHESIS.exists():
        pytest.fail(f"{SCHEMATHESIS} is missing: `make tools`.", pytrace=False)
    seconds = LONG_SECONDS if pytestconfig.getoption("--long") else SECONDS
    ran = subprocess.run(
        [
            str(SCHEMATHESIS),
            *("--config-file", str(CONFIG)),
            "run",
            f"http://127.0.0.1:{api.port}/openapi.json",
            *("--header", f"X-API-Key: {key[0]}"),
            *("--phases", PHASES, "--checks", "all", "--max-time", str(seconds)),
            *("--generation-database", "none", "--continue-on-failure", "--no-color"),
        ],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parent),
            "SCHEMATHESIS_HOOKS": "schema_hooks",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds + 120,
    )
    # Shown by `pytest -s`, and if the test fails.
    sys.stdout.write(ran.stdout)
    assert ran.returncode == 0, ran.stdout[-20_000:]
    assert not api.log_lines("http.failed")
    assert service.worker.is_running
