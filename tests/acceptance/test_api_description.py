"""The API is what its OpenAPI document says: to a tool that tries to show otherwise, to generated
clients, and to a person with a browser."""

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect

from app.api.keys import Scope, new_key
from tests.acceptance.api_process import Api, apis
from tests.acceptance.browser import SHOWN, SIZE, browsing
from tests.acceptance.worker import ROOT, Place, Service
from tests.tools import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_000)]

expect.set_options(timeout=SHOWN)

CLIENTS = ROOT / "tests" / "clients"
IMAGES = ROOT / "docs" / "images"
#: Seconds of a search for faults, and of one by hand:
#: `make verify ARGS="--long -k schemathesis"`.
SECONDS, LONG_SECONDS = 10, 600
PHASES = "examples,coverage,fuzzing,stateful"


@dataclass(frozen=True)
class Described:
    """An API that asks for keys, a key that may do everything, and a worker behind it."""

    api: Api
    key: str
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api.port}"

    def users(self) -> set[str]:
        """Who is registered by the clients."""
        return set(self.service.database["users"].distinct("user_id", {"stock_id": "clients"}))


@pytest.fixture(scope="module")
def described(
    where: Place, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Described]:
    key, entry = new_key("clients", list(Scope))
    with apis(tmp_path_factory.mktemp("apis")) as start:
        yield Described(start({**where.environment, "API_KEYS": entry}), key, service)


def test_schemathesis_finds_nothing(
    described: Described, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    seconds = LONG_SECONDS if pytestconfig.getoption("--long") else SECONDS
    printed = run(
        *("schemathesis", "--config-file", CLIENTS / "schemathesis.toml"),
        *("run", f"{described.url}/openapi.json", "--header", f"X-API-Key: {described.key}"),
        *("--phases", PHASES, "--checks", "all", "--max-time", str(seconds)),
        *("--generation-database", "none", "--continue-on-failure", "--no-color"),
        cwd=tmp_path,
        seconds=seconds + 120,
        more={"PYTHONPATH": str(CLIENTS), "SCHEMATHESIS_HOOKS": "schema_hooks"},
    )
    # `pytest -s` shows it.
    sys.stdout.write(printed)
    assert not described.api.log_lines("http.failed")


def test_a_generated_python_client_registers_a_user(described: Described, tmp_path: Path) -> None:
    run(
        *("openapi-python-client", "generate", "--url", f"{described.url}/openapi.json"),
        *("--meta", "none", "--output-path", tmp_path / "registrations"),
        cwd=tmp_path,
    )
    shutil.copy(CLIENTS / "register.py", tmp_path)
    assert run("python", "register.py", described.url, described.key, cwd=tmp_path) == "registered"
    assert "python" in described.users()


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is missing")
def test_a_generated_typescript_client_registers_a_user(
    described: Described, tmp_path: Path
) -> None:
    # The generator reads no document from this machine over HTTP.
    (tmp_path / "openapi.json").write_bytes(described.api.get("/openapi.json").body)
    run(
        *("openapi", "--input", "openapi.json", "--output", "registrations"),
        *("--client", "fetch", "--useOptions"),
        cwd=tmp_path,
    )
    shutil.copy(CLIENTS / "register.ts", tmp_path)
    run(
        *("tsc", "--strict", "--target", "es2022", "--module", "commonjs", "--outDir", "built"),
        *("--lib", "es2022,dom", "register.ts"),
        cwd=tmp_path,
    )
    printed = run("node", "built/register.js", described.url, described.key, cwd=tmp_path)
    assert printed.strip() == "registered"
    assert "typescript" in described.users()


def test_a_person_registers_a_user_at_docs(
    described: Described, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    with browsing(tmp_path / "profile") as browser:
        page = browser.pages[0]
        hosts: set[str] = set()
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.goto(f"{described.url}/docs")
        page.locator(".btn.authorize").click()
        page.locator("[aria-label='auth-api-key-value'], .auth-container input").fill(described.key)
        page.locator(".auth-btn-wrapper .authorize").click()
        page.locator(".btn-done").click()

        operation = page.locator("#operations-registrations-registerUser")
        operation.locator(".opblock-summary-control").click()
        operation.locator(".try-out__btn").click()
        content = '{"stockId": "clients", "userId": "browser", "userInfo": {"nickname": "kim"}}'
        operation.locator(".body-param__text").fill(content)
        operation.locator(".execute").click()
        answer = operation.locator(".live-responses-table").first
        expect(answer).to_contain_text('"state": "pending"')
        expect(answer.locator(".response-col_status").last).to_contain_text("202")
        if pytestconfig.getoption("--screenshots"):
            IMAGES.mkdir(exist_ok=True)
            page.evaluate("scrollTo(0, 0)")
            place, end = operation.bounding_box(), answer.bounding_box()
            assert place is not None
            assert end is not None
            height = end["y"] + end["height"] - place["y"]
            area = {"x": 0, "y": place["y"], "width": SIZE["width"], "height": height}
            image = IMAGES / "http-docs.png"
            page.screenshot(path=image, full_page=True, clip=area, animations="disabled")
        found = re.search(r'"id": "([0-9a-f]{40})"', answer.inner_text())
        assert found

        operation = page.locator("#operations-registrations-getRegistration")
        operation.locator(".opblock-summary-control").click()
        operation.locator(".try-out__btn").click()
        operation.locator("[data-param-name=id] input").fill(found[1])
        operation.locator("[data-param-name=wait] input").fill("20")
        operation.locator(".execute").click()
        answer = operation.locator(".live-responses-table")
        expect(answer).to_contain_text('"state": "registered"')
    # The page loads nothing from another host.
    assert hosts == {f"127.0.0.1:{described.api.port}"}
    assert "browser" in described.users()
