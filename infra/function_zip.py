"""Builds the zip files of the Lambda function: `make lambda`, or `python -m infra.function_zip`.

    dist/function-x86_64.zip, dist/function-arm64.zip

Each holds `app`, `sqs_broker`, the packages of infra/function_packages.txt, and their bytecode:
Lambda's file system is read-only, so without it each cold start would compile all modules again.
The same sources and packages give the same bytes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Lambda's names of its processors, and the wheels' names of the same.
ARCHITECTURES = {"x86_64": "x86_64", "arm64": "aarch64"}

#: The Python of the function's runtime. It runs on Amazon Linux 2023, which has glibc 2.34.
PYTHON = "3.13"
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")

#: Lambda's limits, in bytes: of a zip that is uploaded directly, and of its content.
#: https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MOST_ZIPPED = 50 * 1024 * 1024
MOST_UNZIPPED = 250 * 1024 * 1024

#: Where Lambda unpacks the zip.
TASK_ROOT = "/var/task"

#: The AWS services that the function calls. botocore's descriptions of all others are left out.
SERVICES = ("sqs", "secretsmanager", "sts")

#: The time of each file in the zip: the first one that a zip can have.
TIME = (1980, 1, 1, 0, 0, 0)

#: Seconds for one call of another program.
TIMEOUT = 600


@dataclass(frozen=True)
class Target:
    """What a zip is for."""

    architecture: str
    """Lambda's name: `x86_64` or `arm64`."""
    python: str = PYTHON
    """`3.13`."""


@dataclass(frozen=True)
class Built:
    """A zip that was built."""

    path: Path
    zipped: int
    unzipped: int
    """Bytes, as `zipped`."""

    def __str__(self) -> str:
        sizes = [f"{size / 1024 / 1024:.1f} MB" for size in (self.zipped, self.unzipped)]
        return f"{self.path}: {sizes[0]} zipped (limit 50), {sizes[1]} unzipped (limit 250)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the zip files, and print their sizes. Exits with 1 if one is above Lambda's limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--python", default=PYTHON, help="version of the function's runtime")
    parser.add_argument("--architecture", choices=ARCHITECTURES, action="append")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    given = parser.parse_args(arguments)
    for architecture in given.architecture or ARCHITECTURES:
        print(build(Target(architecture, given.python), given.out))


def build(target: Target, out: Path) -> Built:
    """Build one zip in a directory. Raises SystemExit, with a line that says what to do."""
    compiler = find_python(target.python)
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        for wheel in wheels_for(target):
            unpack(wheel, tree)
        copy_sources(tree)
        compile_all(compiler, tree)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"function-{target.architecture}.zip"
        unzipped = write_zip(tree, path)
    built = Built(path, path.stat().st_size, unzipped)
    if built.zipped > MOST_ZIPPED or built.unzipped > MOST_UNZIPPED:
        sys.exit(f"{built}: Lambda refuses it. Remove packages from infra/function_packages.txt.")
    return built


# Packages -----------------------------------------------------------------------------------------


def packages() -> list[str]:
    """The names of the packages, as the list has them."""
    lines = (ROOT / "infra" / "function_packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirements() -> list[str]:
    """The packages with their versions: `name==version`. Raises SystemExit if one has none."""
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pinned[canonical(line.partition("==")[0])] = line
    if missing := [name for name in packages() if canonical(name) not in pinned]:
        sys.exit(f"constraints.txt has no version of {', '.join(missing)}.")
    return [pinned[canonical(name)] for name in packages()]


def canonical(name: str) -> str:
    """The name of a package in its normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wheels_for(target: Target) -> list[Path]:
    """The wheels of the packages, in the order of the list. Those that were downloaded before are
    used again."""
    cache = ROOT / ".local" / "wheels" / f"{target.python}-{target.architecture}"
    cache.mkdir(parents=True, exist_ok=True)
    found = _in(cache)
    if len(found) < len(requirements()):
        _download(target, cache)
        found = _in(cache)
    return found


def _in(cache: Path) -> list[Path]:
    wheels = {tuple(path.name.split("-")[:2]): path for path in sorted(cache.glob("*.whl"))}
    by_name = {f"{canonical(name)}=={version}": path for (name, version), path in wheels.items()}
    wanted = [requirement.partition("==") for requirement in requirements()]
    keys = [f"{canonical(name)}=={version}" for name, _, version in wanted]
    return [by_name[key] for key in keys if key in by_name]


def _download(target: Target, cache: Path) -> None:
    processor = ARCHITECTURES[target.architecture]
    platforms = [f"--platform={platform}_{processor}" for platform in PLATFORMS]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    only = ["--no-deps", "--only-binary=:all:", "--implementation=cp"]
    version = [f"--python-version={target.python}", f"--dest={cache}"]
    _call([*pip, *only, *version, *platforms, *requirements()], "pip cannot get the packages")


# The tree -----------------------------------------------------------------------------------------


def unpack(wheel: Path, tree: Path) -> None:
    """Unpack a wheel, without what the function does not need."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if is_needed(name):
                archive.extract(name, tree)


def is_needed(name: str) -> bool:
    """Whether the function needs a file of a wheel."""
    parts = name.split("/")
    if parts[0].endswith(".dist-info"):
        # The metadata, which `importlib.metadata` reads, and the licences.
        return parts[-1] not in ("RECORD", "INSTALLER", "WHEEL", "REQUESTED")
    if parts[0].endswith(".data") or "tests" in parts or name.endswith((".pyi", ".c", ".h")):
        return False
    if parts[:2] == ["botocore", "data"] and len(parts) > 3:
        return parts[2] in SERVICES and not parts[-1].startswith("examples")
    return parts[:2] not in (["boto3", "data"], ["boto3", "examples"])


def copy_sources(tree: Path) -> None:
    """Copy this project's own packages, as its wheel has them."""
    for package in ("app", "sqs_broker"):
        for source in sorted((ROOT / package).rglob("*.py")):
            _copy(source, tree / source.relative_to(ROOT))
    _copy(ROOT / "celeryconfig.py", tree / "app" / "celeryconfig.py")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


# Bytecode -----------------------------------------------------------------------------------------


def find_python(version: str) -> str:
    """An interpreter of this version. Raises SystemExit if there is none."""
    variable = f"PYTHON{version.replace('.', '')}"
    # pyenv's directories too: its command for a version that is not selected fails.
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [os.environ.get(variable), sys.executable, shutil.which(f"python{version}")]
    candidates += map(str, sorted(pyenv.glob(f"{version}.*/bin/python{version}")))
    for candidate in filter(None, candidates):
        if _version_of(candidate) == version:
            return candidate
    sys.exit(
        f"Python {version} is needed, because the zip has its bytecode. Install it, or name it "
        f"with {variable}=/path/to/python{version}."
    )


def _version_of(python: str) -> str:
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-c", program], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def compile_all(python: str, tree: Path) -> None:
    """Compile all modules. The bytecode does not depend on times: Python takes it as it is."""
    how = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", TASK_ROOT]
    _call(
        [python, "-m", "compileall", *how, str(tree)],
        "the packages cannot be compiled",
        # The order of sets in the bytecode depends on it.
        PYTHONHASHSEED="0",
    )


def _call(command: Sequence[str], failure: str, **environment: str) -> None:
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    if done.returncode:
        sys.exit(f"{failure}:\n{done.stderr or done.stdout}")


# The zip ------------------------------------------------------------------------------------------


def write_zip(tree: Path, path: Path) -> int:
    """Write all files of a directory into a zip, in their order by name. Returns their bytes."""
    unzipped = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in _files(tree):
            entry = zipfile.ZipInfo(file.relative_to(tree).as_posix(), TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # Readable for all, because Lambda runs the function as another user.
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            content = file.read_bytes()
            unzipped += len(content)
            archive.writestr(entry, content)
    return unzipped


def _files(tree: Path) -> Iterator[Path]:
    files = (path for path in tree.rglob("*") if path.is_file())
    return iter(sorted(files, key=Path.as_posix))


if __name__ == "__main__":
    main()
