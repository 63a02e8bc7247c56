# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of Molecule in the background: one beside the other tests, all workers once somebody waits for them."""

from __future__ import annotations

import contextlib
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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / ".cache" / "molecule"
DEADLINE = 1500


class Run(NamedTuple):
    release: str
    scenario: str


@dataclass(frozen=True)
class Outcome:
    code: int
    seconds: float
    log: Path
    tests: int  # number of checks that ran, by the JUnit file


class Runner:
    """Runs scenarios in the background; whatever still runs when it is closed is ended, machines included."""

    def __init__(self, runs: list[Run], workers: int) -> None:
        self._stop = threading.Event()
        # As they are now: the tests that run meanwhile change them.
        self._env, self._temporary = dict(os.environ), tempfile.gettempdir()
        self._pool = ThreadPoolExecutor(workers)
        self._running = threading.Semaphore(1)
        self._idle = workers - 1
        self._futures: dict[Run, Future[Outcome]] = {}
        for run in dict.fromkeys(each for asked in runs for each in (Run(asked.release, "default"), asked)):
            self._futures[run] = self._pool.submit(self._run, run)

    def outcome(self, run: Run) -> Outcome:
        while self._idle:
            self._idle -= 1
            self._running.release()
        return self._futures[run].result()

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
        work = Path(tempfile.mkdtemp(prefix="gi-mol-", dir=self._temporary))
        logs = LOGS / run.release / run.scenario
        log, start = logs.with_suffix(".log"), time.monotonic()
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        path = [str(ROOT / ".venv" / "collections"), self._env.get("ANSIBLE_COLLECTIONS_PATH", "")]
        env = {
            **self._env,
            # pytest and its plugins are looked up there by Molecule.
            "PATH": f"{Path(sys.executable).parent}:{self._env['PATH']}",
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
        return Outcome(code, time.monotonic() - start, log, tests)

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
