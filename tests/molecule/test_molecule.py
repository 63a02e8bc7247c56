"""Every role, in a virtual machine of its own: one test a scenario of molecule/ and release of Debian.

The scenario `default` makes the warm snapshot of a release first, if there is none yet. The others run side by side
(MOLECULE_WORKERS, default 2: a machine keeps about one processor busy) and start with the first test.
MOLECULE_SCENARIOS="hardening cleanup" picks some. Logs stay in .cache/molecule/, a folder a release.
"""

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
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / ".cache" / "molecule"
DEADLINE = 1500
# The slow ones first, or one of them runs alone at the end.
SLOW = ["kubernetes_prerequisites", "hardening", "container_runtime"]
# Only `make test-all` waits for a variant of another one, for some hundred megabytes of packages, and for all scenarios
# on a second base disk.
MATRIX = ["cml_host", "hardening_lockout", "hardening_strict"]
RELEASES = ["trixie", "bookworm"]
# The role's platforms are others.
NOT_FOR = {"bookworm": ["cml_host"]}


def wanted() -> list[str]:
    """Names of the scenarios to run; one that does not exist is an error and no empty run."""
    known = sorted(path.parent.name for path in ROOT.glob("molecule/*/converge.yml"))
    picked = os.environ.get("MOLECULE_SCENARIOS", "").replace(",", " ").split() or known
    unknown = sorted(set(picked) - set(known))
    if unknown:
        raise pytest.UsageError(f"MOLECULE_SCENARIOS: no scenario {', '.join(unknown)}; there are {', '.join(known)}")
    return sorted(picked, key=lambda name: SLOW.index(name) if name in SLOW else len(SLOW))


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
        self._pool = ThreadPoolExecutor(workers)
        self._futures: dict[Run, Future[Outcome]] = {}
        for run in dict.fromkeys(each for asked in runs for each in (Run(asked.release, "default"), asked)):
            self._futures[run] = self._pool.submit(self._run, run)

    def outcome(self, run: Run) -> Outcome:
        return self._futures[run].result()

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, run: Run) -> Outcome:
        first = Run(run.release, "default")
        if run != first and self.outcome(first).code:
            return self.outcome(first)
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


@pytest.fixture(scope="session")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    # Only what was selected (-k, node ids) is started, in the order of the tests.
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    here = [item.callspec.params for item in items if item.function is test_scenario]
    runs = [Run(str(params["release"]), str(params["scenario"])) for params in here]
    running = Runner(runs, int(os.environ.get("MOLECULE_WORKERS", "2")))
    try:
        yield running
    finally:
        running.close()


def parameters() -> list[Any]:
    return [
        pytest.param(release, name, marks=pytest.mark.slow_matrix if name in MATRIX or release != RELEASES[0] else ())
        for release in RELEASES
        for name in ["default", *wanted()]
        if name not in NOT_FOR.get(release, [])
    ]


@pytest.mark.parametrize(("release", "scenario"), parameters())
def test_scenario(release: str, scenario: str, runner: Runner) -> None:
    outcome = runner.outcome(Run(release, scenario))
    print(f"{scenario} on {release}: {outcome.tests} checks, {outcome.seconds:.0f} s, log {outcome.log}")
    if outcome.code:
        tail = outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()[-120:]
        pytest.fail(
            f"{scenario} on {release} failed (exit code {outcome.code}), log {outcome.log}:\n" + "\n".join(tail),
            pytrace=False,
        )
    # Molecule only warns when it finds no test.
    assert outcome.tests > 0 or scenario == "default", f"{scenario}: no check was run, log {outcome.log}"
