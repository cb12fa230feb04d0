"""Where the main process of this project's worker spends its time, as py-spy sees it."""

import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench import processes
from bench.candidates import OURS
from bench.errors import BenchError
from bench.lab import Lab

SECONDS = 6
#: Samples a second.
RATE = 200
#: Lines of each list.
MOST = 25
BACKLOG = 20_000


@dataclass
class Profile:
    """Samples of the thread that held the interpreter's lock: Python runs one at a time."""

    total: int = 0
    threads: Counter[str] = field(default_factory=Counter)
    within: Counter[str] = field(default_factory=Counter)
    """By function, its callees included."""
    itself: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = {
            "threads": self.threads,
            "functions, what they call included": self.within,
            "functions by themselves": self.itself,
        }
        told = [f"{name}\n{self._lines(counts)}" for name, counts in parts.items()]
        busy = self.total / (RATE * SECONDS)
        return "\n\n".join([f"the interpreter was busy in {busy:.0%} of the samples", *told])

    def _lines(self, counts: Counter[str]) -> str:
        return "\n".join(
            f"{count / self.total:6.1%}  {name}" for name, count in counts.most_common(MOST)
        )


def measure(lab: Lab) -> Profile:
    """Of a worker with a full queue and nothing added to a call. Raises BenchError without
    py-spy."""
    found = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
    if found is None:
        raise BenchError("py-spy is not installed (dependency group bench)")
    output = lab.logs / "profile.txt"
    with lab.stage(OURS, "register", 0, size=BACKLOG) as stage:
        stage.first_delete()
        main = processes.below(stage.workers[0].guard_pid)[0]
        command = [found, "record", "--pid", str(main), "--duration", str(SECONDS), "--rate"]
        command += [str(RATE), "--format", "raw", "--threads", "--gil", "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 30)
    if done.returncode != 0:
        raise BenchError(f"py-spy: {done.stderr.strip()}")
    return read(output.read_text().splitlines())


def read(lines: Iterable[str]) -> Profile:
    """py-spy's raw format: a thread, its frames, the outermost first, and how often seen."""
    profile = Profile()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        seen = int(count)
        profile.total += seen
        profile.threads[thread] += seen
        # Once for each function, however often it is on the stack.
        for function in {_function(frame) for frame in frames}:
            profile.within[function] += seen
        if frames:
            profile.itself[_function(frames[-1])] += seen
    return profile


def _function(frame: str) -> str:
    """Without the line: `run (app/x.py:12)` is `run (app/x.py)`."""
    name, colon, line = frame.rpartition(":")
    return f"{name})" if colon and line.rstrip(")").isdecimal() else frame
