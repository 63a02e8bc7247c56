# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of Molecule in the background: one beside the other tests, all workers once somebody waits for them.

They belong to a process of their own, because tests look at their process's descriptors and children, and change its
environment. A line on its standard input lets all workers run, the end of the input ends everything; it prints a line
of JSON for each run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / ".cache" / "molecule"
#: Seconds for one scenario; most take two to four minutes, but a busy host is four times slower.
DEADLINE = 2400


class Run(NamedTuple):
    release: str
    scenario: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    seconds: float
    log: str
    tests: int  # number of checks that ran, by the JUnit file


class Background:
    """What pytest has of the process."""

    def __init__(self, runs: list[Run], workers: int) -> None:
        self._outcomes: dict[Run, Outcome] = {}
        self._process: subprocess.Popen[str] | None = None
        if runs:
            command = [sys.executable, __file__, str(workers), *("/".join(run) for run in runs)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )

    def outcome(self, run: Run) -> Outcome:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("all\n")
        self._process.stdin.flush()
        while run not in self._outcomes:
            line = self._process.stdout.readline()
            assert line, "the process that runs Molecule has ended"
            found = json.loads(line)
            self._outcomes[Run(*found["run"])] = Outcome(**found["outcome"])
        return self._outcomes[run]

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


class Runner:
    """Runs scenarios; whatever still runs when it is closed is ended, machines included."""

    def __init__(self, runs: list[Run], workers: int) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(workers)
        self._running = threading.Semaphore(1)
        self._idle = workers - 1
        self._futures: dict[Run, Future[Outcome]] = {}
        for run in dict.fromkeys(each for asked in runs for each in (Run(asked.release, "default"), asked)):
            self._futures[run] = self._pool.submit(self._run, run)

    def all_workers(self) -> None:
        while self._idle:
            self._idle -= 1
            self._running.release()

    def outcomes(self) -> Iterator[tuple[Run, Outcome]]:
        runs = {future: run for run, future in self._futures.items()}
        for future in as_completed(runs):
            if not future.cancelled():
                yield runs[future], future.result()

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, run: Run) -> Outcome:
        first = Run(run.release, "default")
        if run != first and self._futures[first].result().code:
            return self._futures[first].result()
        with self._running:
            return self._molecule_test(run)

    def _molecule_test(self, run: Run) -> Outcome:
        # Short, because it holds sockets, whose paths may have 107 bytes.
        work = Path(tempfile.mkdtemp(prefix="gi-mol-"))
        logs = LOGS / run.release / run.scenario
        log, start = logs.with_suffix(".log"), time.monotonic()
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        path = [str(ROOT / ".venv" / "collections"), os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")]
        env = {
            **os.environ,
            # pytest and its plugins are looked up there by Molecule.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ANSIBLE_COLLECTIONS_PATH": ":".join(filter(None, path)),
            "MOLECULE_EPHEMERAL_DIRECTORY": str(work),
            "MOLECULE_LOGS": str(logs),
            "MOLECULE_RELEASE": run.release,
            # The machine ends with this run of molecule, however that ends.
            "MOLECULE_VM_LIFETIME": "play",
            "PY_COLORS": "0",
            "ANSIBLE_NOCOLOR": "1",
        }
        # For the pytest that checks the machine. The ephemeral directory is no place: Molecule empties it at the end.
        env["PYTEST_ADDOPTS"] = shlex.quote(f"--junit-xml={logs / 'junit.xml'}")
        with log.open("wb") as out:
            code = self._molecule(["test", "--scenario-name", run.scenario], env, out)
            if code:
                self._molecule(["destroy", "--scenario-name", run.scenario], env, out, stoppable=False)
        tests = _count(logs / "junit.xml")
        shutil.rmtree(work, ignore_errors=True)
        return Outcome(code, time.monotonic() - start, str(log), tests)

    def _molecule(self, args: list[str], env: dict[str, str], out: object, *, stoppable: bool = True) -> int:
        command = [sys.executable, "-m", "molecule", *args]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + DEADLINE
        while process.poll() is None:
            if time.monotonic() > end or (stoppable and self._stop.is_set()):
                _end_group(process)
                return 124
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        return process.returncode


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


def _count(junit: Path) -> int:
    try:
        suites = ET.parse(junit).getroot().iter("testsuite")
    except (OSError, ET.ParseError):
        return 0
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def main(workers: int, runs: list[Run]) -> None:
    runner = Runner(runs, workers)

    def listen() -> None:
        for _line in sys.stdin:
            runner.all_workers()
        runner.close()

    threading.Thread(target=listen).start()
    for run, outcome in runner.outcomes():
        print(json.dumps({"run": run, "outcome": dataclasses.asdict(outcome)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workers", type=int)
    parser.add_argument("runs", nargs="+", metavar="RELEASE/SCENARIO", type=lambda text: Run(*text.split("/")))
    arguments = parser.parse_args()
    main(arguments.workers, arguments.runs)
