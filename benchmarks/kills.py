"""Does a run that is stopped at any moment end with the files of one that was not? Kills, signals and torchrun.

A run of `conceptcam train` is started again and again with `--resume` and stopped after a random time, until it comes
to its end; its folder is then compared with that of a run which nobody stopped: the bytes of model, config, figures
and `run.json`, the epochs of the history, and the names of all files. SIGTERM and SIGINT must also end it with the
usual status and a sentence that says how to go on.

Everything that follows the option `--run` is handed to `conceptcam train`:

    python benchmarks/kills.py --kills 24 --signals 8 --torchrun 6 --run DATA --image-size 64 64
"""

import argparse
import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import finish

SAME = ("model.safetensors", "config.json", "metrics.json", "metrics.txt", "run.json", "baselines.safetensors")
ENDS = 120.0
"""Seconds within which a run that was stopped must be gone."""


@dataclass(frozen=True)
class Way:
    """How a run is stopped."""

    name: str
    number: signal.Signals
    processes: int = 1
    victims: str = "all"
    """With several processes: `one` or `all` of them, or the `agent`, which is torchrun itself."""


WAYS = {
    "kills": [Way("SIGKILL", signal.SIGKILL)],
    "signals": [Way("SIGTERM", signal.SIGTERM), Way("SIGINT", signal.SIGINT)],
    "torchrun": [
        Way("SIGKILL of one of two", signal.SIGKILL, 2, "one"),
        Way("SIGKILL of both", signal.SIGKILL, 2, "all"),
    ],
    "torchrun_signals": [
        Way("SIGTERM to torchrun", signal.SIGTERM, 2, "agent"),
        Way("SIGINT to torchrun", signal.SIGINT, 2, "agent"),
    ],
}


class Run:
    """One start of the command, with what it writes to standard error."""

    def __init__(self, arguments: Sequence[str], out: Path, processes: int) -> None:
        command = ["train", *arguments, "--out", str(out), "--resume"]
        self.errors = out.with_suffix(".stderr")
        self.errors.unlink(missing_ok=True)
        sys.stdout.flush()
        if processes > 1:
            torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
            torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "conceptcam"]
            with self.errors.open("w") as file:
                self._process = subprocess.Popen([*torchrun, *command], stdout=subprocess.DEVNULL, stderr=file)
            self.pid = self._process.pid
            return
        self.pid = os.fork()  # of a process that has imported all: the moments are those of the run
        if self.pid == 0:
            self._become(command)

    def _become(self, command: Sequence[str]) -> None:
        from conceptcam.cli.main import main

        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(self.errors, os.O_WRONLY | os.O_CREAT), 2)
            status = main(command)
        finally:
            sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float) -> int | None:
        """How it ended, as a shell says it, within some seconds; None if it did not."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return 128 - code if code < 0 else code
            time.sleep(0.01)
        return None

    def stop(self, way: Way, chance: random.Random) -> None:
        """Send the signal to whom it is for."""
        ranks = _children(self.pid)
        if way.processes == 1 or way.victims == "agent" or not ranks:
            ranks = [self.pid]
        elif way.victims == "one":
            ranks = [chance.choice(ranks)]
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, way.number)

    def said(self) -> str:
        return self.errors.read_text(errors="replace") if self.errors.exists() else ""


def _children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return sorted(found)


def differences(whole: Path, other: Path) -> list[str]:
    """What is not the same in two folders of runs."""
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (whole, other)]
    found = [f"{name} is in one folder alone" for name in sorted({*names[0]} ^ {*names[1]})]
    present = [name for name in SAME if (whole / name).exists() and (other / name).exists()]
    found += [f"{name} differs" for name in present if (whole / name).read_bytes() != (other / name).read_bytes()]
    if _history(whole) != _history(other):
        found.append("history.csv differs")
    return found


def _history(folder: Path) -> list[list[str]]:
    """The rows without the time that an epoch took, and whether a cache helped."""
    with (folder / "history.csv").open(newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def misbehaviour(way: Way, code: int | None, said: str, begun: bool) -> list[str]:
    """What is wrong with how a run that was stopped ended."""
    if code is None:
        return [f"not gone after {ENDS:.0f} s"]
    if way.number == signal.SIGKILL or code == 0:
        return []
    found = [] if way.processes > 1 or code == 128 + way.number else [f"exit status {code}"]
    sentence = "stopped; go on with" if begun else "stopped"
    own = [line for line in said.splitlines() if line.startswith("conceptcam train: ")]
    if code == 128 + way.number and not said:  # before the command could know
        return [] if not begun else ["no sentence"]
    if begun and len(own) != 1 or any(sentence not in line for line in own):
        found.append(f"said {own}")
    if way.processes == 1 and "Traceback" in said:  # torchrun itself writes one
        found.append("a traceback")
    return found


def attack(
    way: Way, arguments: Sequence[str], count: int, whole: Path, seconds: float, chance: random.Random
) -> dict[str, Any]:
    """Stop runs `count` times, and compare each that came to its end."""
    stops = runs = moments = 0
    wrong: Counter[str] = Counter()
    while stops < count:
        out = whole.parent / f"{way.name.replace(' ', '-')}-{runs}"
        runs += 1
        while True:
            run = Run(arguments, out, way.processes)
            code = run.wait(chance.uniform(0, seconds) if stops < count else 1e6)
            if code is not None:
                break
            begun = any(out.rglob("*.pt")) or (out / "history.csv").exists()
            run.stop(way, chance)
            code = run.wait(ENDS)
            stops, moments = stops + 1, moments + begun
            wrong.update(misbehaviour(way, code, run.said(), begun))
            if code in (None, 0):
                break
        found = [f"exit status {code}: {run.said()[-300:]}"] if code != 0 else differences(whole, out)
        wrong.update(found)
    told = "; ".join(f"{count} x {what}" for what, count in wrong.items())
    return {
        "stopped by": way.name,
        "times": stops,
        "after the first epoch": moments,
        "runs": runs,
        "wrong": told or "-",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24, help="kills of a run of one process")
    parser.add_argument("--signals", type=int, default=8, help="SIGTERM and SIGINT, in all")
    parser.add_argument("--torchrun", type=int, default=6, help="kills of one and of both of two processes, in all")
    parser.add_argument("--torchrun-signals", type=int, default=4, help="SIGTERM and SIGINT to torchrun, in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--run", nargs=argparse.REMAINDER, required=True, help="what to give `conceptcam train`")
    options = parser.parse_args()
    chance, rows = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        wholes: dict[int, tuple[Path, float]] = {}
        for kind, ways in WAYS.items():
            for number, way in enumerate(ways):
                count = (getattr(options, kind) + len(ways) - 1 - number) // len(ways)
                if not count:
                    continue
                if way.processes not in wholes:
                    wholes[way.processes] = _whole(options.run, Path(folder), way.processes)
                whole, seconds = wholes[way.processes]
                rows.append(attack(way, options.run, count, whole, seconds, chance))
                print(rows[-1], f"of {seconds:.0f} s", file=sys.stderr, flush=True)
    finish(rows, {name: value for name, value in vars(options).items() if name != "json"}, options.json)
    if any(row["wrong"] != "-" for row in rows):
        sys.exit(1)


def _whole(arguments: Sequence[str], folder: Path, processes: int) -> tuple[Path, float]:
    """The folder of a run that nobody stops, and the seconds that it takes."""
    out = folder / f"whole-{processes}"
    for _ in range(2 if processes == 1 else 1):  # the first also reads what is not in the system's memory yet
        subprocess.run(["rm", "-rf", str(out)], check=True)
        started = time.perf_counter()
        run = Run(arguments, out, processes)
        if (code := run.wait(1e6)) != 0:
            sys.exit(f"the run does not end by itself: exit status {code}: {run.said()}")
    return out, time.perf_counter() - started


if __name__ == "__main__":
    import torch

    from conceptcam.cli import train  # noqa: F401  # for all forks
    from conceptcam.data import coco  # noqa: F401
    from conceptcam.runs import run as _  # noqa: F401

    torch.set_num_threads(1)
    main()
