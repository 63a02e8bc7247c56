# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the playbooks as a user does: the real command, from the checkout, output as it comes on the terminal."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import itertools
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
# In the environment of each play, and so of all that it starts: which test it belongs to.
MARK = "GOLDSMITH_IMAGES_TEST"
# A loaded machine takes its time.
SECONDS_TO_END = 90
BUILD_SECONDS = 2700


@dataclass
class Play:
    """A running or ended ansible-playbook."""

    process: subprocess.Popen[str]
    log: Path
    terminal: int | None = None

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
        if self.terminal is None:
            os.killpg(self.process.pid, signal.SIGINT)
        else:
            os.write(self.terminal, b"\x03")

    def copy_terminal(self) -> None:
        """Write what appears on the terminal to the log, until the last process closes it."""
        with self.log.open("wb", buffering=0) as log, contextlib.suppress(OSError):
            while chunk := os.read(self.terminal, 4096):
                log.write(chunk)


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


@pytest.fixture(scope="session")
def built(play_environment: dict[str, str]) -> str:
    """Build the default image with the README's command; returns what was printed."""
    done = subprocess.run(
        ["ansible-playbook", "playbooks/build-image.yml", "-e", "image=cloud_base"],
        cwd=CHECKOUT,
        env=play_environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-12000:]
    return done.stdout


@pytest.fixture
def private_tmp() -> Iterator[Path]:
    """Return the folder for temporary files, keys among them, of all plays of a test; short, as sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="gi-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def play(play_environment: dict[str, str], tmp_path: Path, private_tmp: Path) -> Iterator[Callable[..., Play]]:
    """Start `ansible-playbook PLAYBOOK ARGUMENTS` in its own process group; what still runs at the end is ended.

    *mounts* is a shell command that changes what only this play sees of the file system. With *user* (`name:group`)
    root starts it as somebody else. With *terminal* it has one.
    """
    plays: list[Play] = []
    own = {MARK: str(tmp_path), "TMPDIR": str(private_tmp)}

    def start(
        *arguments: str,
        environment: dict[str, str] | None = None,
        mounts: str = "true",
        user: str = "",
        terminal: bool = False,
    ) -> Play:
        log = tmp_path / f"play-{len(plays)}.log"
        if terminal:
            plays.append(start_on_terminal(log, *arguments))
            return plays[-1]
        command = ["ansible-playbook", *arguments]
        if user:
            name, _colon, group = user.partition(":")
            command = ["setpriv", "--reuid", name, "--regid", group, "--clear-groups", *command]
        if mounts != "true":
            root = ["--map-root-user"] if os.geteuid() else []
            command = ["unshare", *root, "--mount", "sh", "-ec", f'{mounts}; exec "$@"', "sh", *command]
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=CHECKOUT,
                env={**play_environment, **own, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        plays.append(Play(process, log))
        return plays[-1]

    def start_on_terminal(log: Path, *arguments: str) -> Play:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            ["setsid", "--ctty", "ansible-playbook", *arguments],
            cwd=CHECKOUT,
            env={**play_environment, **own, "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            text=True,
        )
        os.close(slave)
        log.touch()
        started = Play(process, log, master)
        threading.Thread(target=started.copy_terminal, daemon=True).start()
        return started

    yield start
    for each in plays:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()
        if each.terminal is not None:
            os.close(each.terminal)


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
    """Return the command lines of running processes that have a text in their command line or environment.

    A module that comes through a pipe has no path in its command line, but the environment of its play.
    """

    def read(path: Path) -> str:
        try:
            return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended, or is somebody else's
            return ""

    def find(text: str) -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            # A process that has ended and is not waited for yet has neither.
            command, environment = read(process / "cmdline"), read(process / "environ")
            if text in f"{command} {environment}" and int(process.name) != os.getpid():
                found.append(command or f"process {process.name}")
        return found

    return find


def _beginning(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(64)


@pytest.fixture
def running_here(processes_with: Callable[[str], list[str]], tmp_path: Path) -> Callable[[], list[str]]:
    """Return the command lines of processes that work for this test."""
    return lambda: processes_with(str(tmp_path))


@pytest.fixture
def nothing_left(running_here: Callable[[], list[str]], tmp_path: Path, private_tmp: Path) -> Callable[..., bool]:
    """Wait until no process of this test runs; then no key may be left either, in its folders and in those named."""

    def keys(folders: tuple[Path, ...]) -> list[Path]:
        found = []
        for folder, *rest in itertools.chain.from_iterable(map(os.walk, (tmp_path, private_tmp, *folders))):
            for path in (Path(folder, name) for name in rest[-1]):
                # Another process may still be removing it.
                with contextlib.suppress(OSError):
                    if path.is_file() and b"PRIVATE KEY" in _beginning(path):
                        found.append(path)
        return found

    def check(*folders: Path) -> bool:
        deadline = time.monotonic() + SECONDS_TO_END
        while (running := running_here()) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not running
        assert not keys(folders)
        return True

    return check


@pytest.fixture
def served_disk(tmp_path: Path) -> Iterator[Callable[[bytes | Path], dict[str, str]]]:
    """Serve a disk, its content or its file, on loopback; returns the base of an image definition that downloads it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def serve(content: bytes | Path) -> dict[str, str]:
        disk = folder / "disk"
        if isinstance(content, Path):
            disk.symlink_to(content)
        else:
            disk.write_bytes(content)
        with disk.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/disk"
        return {"method": "download", "url": url, "checksum": f"sha256:{digest}"}

    yield serve
    server.shutdown()
    server.server_close()
