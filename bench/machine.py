"""What a run was made on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("celery", "kombu", "boto3", "pymongo", "mongoengine", "dramatiq", "dramatiq-sqs")


def machine() -> str:
    """Processor, cores and system, in words."""
    return (
        f"{os.cpu_count()} cores ({_processor()}), {_memory()}{platform.system()} "
        f"{platform.machine()}"
    )


def versions() -> dict[str, str]:
    """Of what was measured, by name; what is not installed is not in it."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return ""
    return f"{pages * size / 1024**3:.0f} GiB, "
