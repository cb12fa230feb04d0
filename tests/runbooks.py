"""The pages of docs/runbooks/, as tests read and run them."""

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic

DIRECTORY = Path(__file__).resolve().parents[1] / "docs" / "runbooks"

#: The parts of a page, in this order.
PARTS = ("You see", "Why", "Show it", "Mend it", "Do not")

#: Programs that the tests run. All others are of AWS, of a cluster or of the machine.
RUN = frozenset({"celery", "grep", "sort", "uniq"})

#: Seconds for all commands of one block.
BLOCK_SECONDS = 120

#: Seconds until a block that only looks prints what the page says: events and files need a moment.
LOOK_SECONDS = 60

#: Commands of `celery -A app` that change nothing, so that a person may repeat them.
LOOKS = frozenset(
    {"inspect", "status", "sqs queues", "sqs health", "sqs doctor", "sqs trace", "sqs dlq list",
     "sqs dlq show"}
)  # fmt: skip

#: Any text, in what a page says of an output.
ANY = "…"

#: What no command of a page may print.
BAD = ("Traceback (most recent call last)", "Usage: ")


@dataclass(frozen=True)
class Block:
    """Commands of a page, and what the page says that they print."""

    commands: str
    expected: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        return self.commands.splitlines()

    @property
    def is_run(self) -> bool:
        """Whether the tests run it. Raises AssertionError if they would run a part of it."""
        kinds = {program in RUN for line in self.lines for program in programs_of(line)}
        assert len(kinds) == 1, f"commands that are run are beside others:\n{self.commands}"
        return kinds.pop()

    @property
    def is_look(self) -> bool:
        """Whether it changes nothing."""
        return all(looks(line) for line in self.lines)


@dataclass(frozen=True)
class Page:
    """A page, by the name of its file."""

    name: str

    @cached_property
    def text(self) -> str:
        return (DIRECTORY / f"{self.name}.md").read_text()

    @cached_property
    def parts(self) -> Mapping[str, str]:
        """The text of each part, by its heading."""
        _, *rest = re.split(r"^## (.+)$", self.text, flags=re.MULTILINE)
        return dict(zip(rest[::2], rest[1::2], strict=True))

    @property
    def sights(self) -> Mapping[str, str]:
        """The rows of the table of `You see`: what there is to see, by where."""
        return dict(re.findall(r"^\| ([\w, ]+) \| (.+) \|$", self.parts["You see"], re.MULTILINE))

    def blocks(self, part: str | None = None) -> Iterator[Block]:
        """The blocks of commands of a part or of the page, with what it says of the output."""
        text = self.text if part is None else self.parts[part]
        for commands, _, expected in re.findall(
            r"^```sh\n(.*?)^```$(\n\n```text\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL
        ):
            yield Block(commands, tuple(expected.splitlines()))


def names() -> list[str]:
    """The names of all pages but the index."""
    return sorted(file.stem for file in DIRECTORY.glob("*.md") if file.stem != "README")


def programs_of(line: str) -> list[str]:
    """The programs that a line of a shell calls."""
    words = list(shlex.shlex(line, posix=True, punctuation_chars="|"))
    starts = [0, *(place + 1 for place, word in enumerate(words) if word == "|")]
    return [words[place] for place in starts]


def looks(line: str) -> bool:
    """Whether a command that the tests run changes nothing."""
    if programs_of(line)[0] != "celery":
        return True
    words = shlex.split(line)[3:]
    return any(words[: len(look.split())] == look.split() for look in LOOKS)


@dataclass
class Runbook:
    """A page whose commands are run."""

    page: Page
    environment: Mapping[str, str]
    directory: Path
    """Where the commands are typed. `worker.log` is in it."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What is put in place of QUEUE, ID and the other words in capitals of the page."""
    patience: float = LOOK_SECONDS

    def run(self, part: str, *, environment: Mapping[str, str] | None = None) -> list[str]:
        """Run all blocks of a part, and compare their output with the page. Returns the outputs."""
        found = [block for block in self.page.blocks(part) if block.is_run]
        assert found, f"{self.page.name}: nothing of {part!r} can be run"
        return [self.run_block(block, environment) for block in found]

    def run_block(self, block: Block, environment: Mapping[str, str] | None = None) -> str:
        """Run one block; again and again if it only looks. Raises AssertionError if a line is
        missing that the page has."""
        if not block.is_look:
            return self._run_once(block, environment or {})
        deadline = monotonic() + self.patience
        while True:
            try:
                return self._run_once(block, environment or {})
            except AssertionError:
                if monotonic() >= deadline:
                    raise

    def _run_once(self, block: Block, environment: Mapping[str, str]) -> str:
        commands = self.completed(block.commands)
        ran = subprocess.run(
            ["bash", "-c", commands],
            env={**self.environment, **environment},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_SECONDS,
        )
        told = f"{self.page.name}: $ {commands}\n{ran.stdout}"
        for line in block.expected:
            wanted = self.completed(line)
            assert prints(ran.stdout, wanted), f"no line is {wanted!r}\n{told}"
        for bad in BAD:
            assert bad not in ran.stdout, told
        # A fault that a command shows is 1, and so is a grep that finds nothing.
        assert ran.returncode in (0, 1), told
        return ran.stdout

    def completed(self, text: str) -> str:
        """The text with names in place of its words in capitals."""
        for word, name in self.names.items():
            text = re.sub(rf"(?<![A-Za-z-]){word}(?![A-Za-z])", name, text)
        return text


def prints(output: str, line: str) -> bool:
    """Whether a line of the output is this one. Spaces do not count, and `…` is any text."""
    wanted = " ".join(line.split())
    pattern = ".*".join(re.escape(part.strip()) for part in wanted.split(ANY))
    return any(re.fullmatch(pattern, " ".join(each.split())) for each in output.splitlines())
