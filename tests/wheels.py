"""The two distributions of this repository, built and installed as they are elsewhere."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Seconds that pip may take for one call.
PIP_SECONDS = 60


@dataclass(frozen=True)
class Wheels:
    """One wheel of each distribution."""

    broker: Path
    application: Path


def build(directory: Path) -> Wheels:
    """Build both from the checkout, as the Dockerfile does."""
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(directory)]
    pip("wheel", *options, str(ROOT / "sqs_broker"), str(ROOT))
    (broker,) = directory.glob("celery_sqs_broker-*.whl")
    (application,) = directory.glob("sqs_registrations-*.whl")
    return Wheels(broker, application)


def install(wheels: Wheels, site: Path) -> None:
    """Install both, with their entry points and without what they depend on."""
    pip("install", "--no-deps", "--target", str(site), str(wheels.broker), str(wheels.application))


def pip(*arguments: str) -> None:
    """Run this environment's pip. It asks no package index."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments],
        env=os.environ | {"PIP_NO_INDEX": "1"},
        check=True,
        timeout=PIP_SECONDS,
    )
