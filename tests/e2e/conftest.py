# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the playbooks as a user does: the real command, from the checkout, output as it comes on the terminal."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass
class Play:
    """A running or ended ansible-playbook."""

    process: subprocess.Popen[str]
    log: Path
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """All that was printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout: float) -> int:
        """Return the exit status; a play that takes longer than *timeout* seconds is an error."""
        return self.process.wait(timeout)

    def wait_for(self, text: str, timeout: float) -> None:
        """Wait until *text* is printed."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            assert self.process.poll() is None, f"the play ended before it said {text!r}:\n{self.output[-4000:]}"
            assert time.monotonic() < deadline, f"the play did not say {text!r}:\n{self.output[-4000:]}"
            time.sleep(0.2)

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal sends SIGINT to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture(scope="session")
def play_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment that `make` gives to ansible-playbook."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"]),
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "LC_ALL": "C.UTF-8",
    }
    return environment


@pytest.fixture
def play(play_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Play]]:
    """Start `ansible-playbook PLAYBOOK ARGUMENTS` in its own process group; what still runs at the end is ended.

    *mounts* is a shell command that changes what only this play sees of the file system.
    """
    plays: list[Play] = []

    def start(*arguments: str, environment: dict[str, str] | None = None, mounts: str = "true") -> Play:
        log = tmp_path / f"play-{len(plays)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["unshare", "--map-root-user", "--mount", "sh", "-ec", f'{mounts}; exec "$@"', "sh"]
                * (mounts != "true")
                + ["ansible-playbook", *arguments],
                cwd=CHECKOUT,
                env={**play_environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        plays.append(Play(process, log))
        return plays[-1]

    yield start
    for each in plays:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()


@pytest.fixture
def definition(tmp_path: Path) -> Callable[..., Path]:
    """Write an image definition with the given keys; returns its path."""

    def write(**keys: object) -> Path:
        path = tmp_path / f"{keys.get('name', 'mine')}.yml"
        base = {"method": "bootstrap", "distribution": "debian", "release": "trixie"}
        path.write_text(yaml.safe_dump({"name": "mine", "base": base, "checks": ["identity"], **keys}))
        return path

    return write


@pytest.fixture(scope="session")
def processes_with() -> Callable[[str], list[str]]:
    """Return the command lines of running processes that have a text in them."""

    def find(text: str) -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if text in command and int(path.parent.name) != os.getpid():
                found.append(command)
        return found

    return find


@pytest.fixture
def served_disk(tmp_path: Path) -> Iterator[Callable[[bytes], dict[str, str]]]:
    """Serve a disk on loopback; returns the base of an image definition that downloads it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def serve(content: bytes) -> dict[str, str]:
        (folder / "disk.raw").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/disk.raw"
        return {"method": "download", "url": url, "checksum": f"sha256:{digest}"}

    yield serve
    server.shutdown()
    server.server_close()
