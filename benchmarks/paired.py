"""Two sides that do the same work in turn, each in a process of its own, so that a busy machine slows both.

A side is a script that builds what it needs, prints a line of JSON and then waits. Each line it reads makes it do one unit of
work (a training step, a rollout) and print a line of JSON: what it computed, to be compared, and how long that took, by the
clock and in time of the processor. With one thread on a CPU the latter is what counts where other processes want the core too.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO


def resident() -> float:
    """What this process holds in memory now, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("There is no VmRSS in /proc/self/status.")


def peak() -> float:
    """The most it has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Served:
    """A side's end of the conversation.

    Whatever else the process prints goes to stderr: stdout is for answers alone.

    Args:
        baseline: MiB that the process held before it built anything.
    """

    def __init__(self, baseline: float) -> None:
        self.baseline = baseline
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._began = (0.0, 0.0)

    def wait(self, **said: Any) -> None:
        """Says what came of the work done so far, and returns when more is asked for; ends the process when none is."""
        clock, processor = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        cost = {"seconds": clock, "cpu_seconds": processor, "memory": peak() - self.baseline}
        print(json.dumps({**cost, **said}), file=self._out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self._began = (time.perf_counter(), time.process_time())


class Side:
    """The driver's end.

    Args:
        command: What to run.
        environment: Beside this process's own.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = " ".join(command)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.built = self._read()

    def work(self) -> dict[str, Any]:
        """One unit of work."""
        self._stream(self._process.stdin).write("go\n")
        self._stream(self._process.stdin).flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._stream(self._process.stdin).close()
        self._process.wait(timeout=60)

    def _read(self) -> dict[str, Any]:
        line = self._stream(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{self._command} ended with {self._process.wait()}; see above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stream(self, stream: Any) -> TextIO:
        assert stream is not None
        found: TextIO = stream
        return found


class Result(NamedTuple):
    """What a comparison found.

    Args:
        ours: Median seconds of a unit of work.
        peer: The same of the other side.
        ratio: Median of the paired ratios peer / ours: above 1 where we are faster.
        spread: The lower and upper quartile of these ratios.
        cpu_ratio: As `ratio`, of the processor's time.
        memory: Ours, the most over the process's own baseline, MiB.
        memory_ratio: That over the peer's: below 1 where we need less.
    """

    ours: float
    peer: float
    ratio: float
    spread: tuple[float, float]
    cpu_ratio: float
    memory: float
    memory_ratio: float


def compare(
    ours: Side, peer: Side, repeats: int, warm_up: int, check: Callable[[dict[str, Any], dict[str, Any]], None]
) -> Result:
    """Lets both sides work in turn, the first one changing places, and checks that they compute the same.

    Args:
        ours: Our side.
        peer: The other side.
        repeats: Units of work that are timed.
        warm_up: Units of work before that.
        check: Raises where two answers to the same unit differ.
    """
    times: list[tuple[float, float]] = []
    cpu_ratios: list[float] = []
    for number in range(warm_up + repeats):
        first, second = (ours, peer) if number % 2 else (peer, ours)
        answers = {id(first): first.work(), id(second): second.work()}
        mine, theirs = answers[id(ours)], answers[id(peer)]
        check(mine, theirs)
        if number >= warm_up:
            times.append((mine["seconds"], theirs["seconds"]))
            cpu_ratios.append(theirs["cpu_seconds"] / mine["cpu_seconds"])
    ratios = sorted(b / a for a, b in times)
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Result(
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(ratios),
        (quartiles[0], quartiles[2]),
        statistics.median(cpu_ratios),
        mine["memory"],
        mine["memory"] / theirs["memory"],
    )


def report(benchmark: str, result: Result, settings: Mapping[str, Any]) -> None:
    """Prints the result for people, and below it as JSON."""
    low, high = result.spread
    print(
        f"{benchmark}: {result.ours:.3f} s ours, {result.peer:.3f} s the peer's: {result.ratio:.2f} times as fast "
        f"({low:.2f} to {high:.2f}; {result.cpu_ratio:.2f} in processor time), with {result.memory_ratio:.2f} of its memory. "
        f"{dict(settings)}"
    )
    print(json.dumps({"benchmark": benchmark, **result._asdict(), "settings": dict(settings)}))


def check_losses(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> None:
    """Raises where the losses of one step differ by more than bf16 explains."""
    if abs(ours["loss"] - peer["loss"]) > 0.01 * abs(peer["loss"]) + 1e-3:
        raise SystemExit(f"The losses differ, so the work does too: {ours['loss']} ours, {peer['loss']} the peer's.")
