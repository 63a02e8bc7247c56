# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks of this machine's own: namespaces joined by virtual cables, without a way to the outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SERVERS = Path(__file__).with_name("network_servers.py")

# What module and boot service do, without Ansible and without Ansible's path.
VALIDATE = """\
import json, sys, time
sys.path.insert(0, sys.argv[1])
from ansible_collections.goldsmith.images.plugins.module_utils import _net_plan, _net_run, _net_spec
options = _net_spec.complete(json.load(sys.stdin))
start = time.monotonic()
results = _net_run.run(_net_plan.plan(options), options["timeout"], options["retries"], options["parallel"])
report = _net_run.report(results)
report["elapsed_ms"] = (time.monotonic() - start) * 1000
# Not ru_maxrss: that counts what the parent had when it forked.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
report["rss_mb"] = int(peak) / 1024
assert not any(name.split(".")[0] == "ansible" for name in sys.modules)
print(json.dumps(report))
"""


def missing() -> str:
    """Why no network can be made here; empty if it can."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    tools = [
        name for name in ("ip", "nft", "unshare", "nsenter", "nginx", "dnsmasq", "tinyproxy", "ping") if not which(name)
    ]
    if tools:
        return f"not installed: {', '.join(tools)}"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], check=False, capture_output=True)
    return "" if done.returncode == 0 else "no network namespaces here"


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


WHY_NOT = missing()
needed = pytest.mark.skipif(bool(WHY_NOT), reason=f"no networks can be made on this machine: {WHY_NOT}")


class Namespace:
    """A machine, as far as the network goes. Everything in it ends with it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        script = "mount --make-rprivate / && ip link set lo up && echo ready && exec sleep infinity"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", f"no namespace {name}"

    @property
    def pid(self) -> int:
        return self._holder.pid

    def command(self, *command: str | Path) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--wd=/", "--", *map(str, command)]

    def run(self, *command: str | Path, data: str | None = None) -> str:
        done = subprocess.run(self.command(*command), input=data, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}"
        return done.stdout

    def ip(self, text: str) -> None:
        self.run("ip", *text.split())

    def nft(self, rules: str) -> None:
        """Replace all rules of the table `test`."""
        self.run(
            "nft", "-f", "-", data=f"table inet test {{}}\ndelete table inet test\ntable inet test {{\n{rules}\n}}\n"
        )

    def file(self, path: str, text: str) -> None:
        """A file of this machine's own in /etc, over the one that was there, until it is unmounted."""
        own = self.folder / f"file-{len(list(self.folder.iterdir()))}"
        own.write_text(text)
        self.run("mount", "--bind", own, path)

    def start(self, *command: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        log = (self.folder / "log").open("ab")
        process = subprocess.Popen(
            self.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}
        )
        self._processes.append(process)
        return process

    def wait_for_port(self, port: int, kind: str = "tcp") -> None:
        end = time.monotonic() + 20
        while not self.run("ss", "-Hln", f"--{kind}", f"sport = :{port}"):
            log = (self.folder / "log").read_text(errors="replace")
            assert time.monotonic() < end, f"nothing listens on {kind} port {port} of {self.name}: {log}"
            time.sleep(0.05)

    def validate(
        self, *prefix: str, python: str = sys.executable, env: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Run the checks here; *prefix* is a command that takes privileges away first."""
        command = self.command(*prefix, python, "-I", "-B", "-c", VALIDATE, collections_root())
        clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run(
            command,
            input=json.dumps(options),
            capture_output=True,
            text=True,
            check=False,
            env={**clean, **(env or {})},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def close(self) -> None:
        for process in [*self._processes, self._holder]:
            process.terminate()
        for process in [*self._processes, self._holder]:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        stream: IO[bytes] | None = self._holder.stdout
        if stream is not None:
            stream.close()


def collections_root() -> str:
    return str(CHECKOUT / ".venv" / "collections")


def cable(one: Namespace, one_name: str, other: Namespace, other_name: str) -> None:
    one.ip(f"link add {one_name} type veth peer name {other_name} netns {other.pid}")
    for machine, name in ((one, one_name), (other, other_name)):
        machine.ip(f"link set {name} up")


def address(machine: Namespace, interface: str, *addresses: str) -> None:
    for each in addresses:
        nodad = " nodad" if ":" in each else ""
        machine.ip(f"address add {each} dev {interface}{nodad}")
