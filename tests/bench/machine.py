# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benches of roles share: a machine of Molecule's, and roles applied to it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
FACTS = ["!all", "!min", "distribution", "platform", "pkg_mgr", "service_mgr", "is_chroot", "python", "user"]


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine of Molecule's, and the ways into it."""

    work: Path

    def ssh(self, command: str, *options: str, check: bool = True, text: str | None = None) -> str:
        done = subprocess.run(
            ["ssh", "-F", str(self.work / "ssh_config"), *options, "vm", command],
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            sys.exit(f"bench: {command}: exit {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def play(self, roles: list[str], **variables: Any) -> list[dict[str, Any]]:
        """Gather the facts, then apply each role in a play of its own; what ansible.posix.json says of the plays."""
        hosts = {"hosts": "molecule", "become": True}
        plays = [{**hosts, "name": "facts", "gather_facts": True, "gather_subset": FACTS}]
        for role in roles:
            plays.append({**hosts, "name": role, "gather_facts": False, "roles": [f"goldsmith.images.{role}"]})
        path = self.work / "play.json"
        path.write_text(json.dumps(plays), encoding="utf-8")
        inventory = CHECKOUT / "molecule/inventory.yml"
        command = ["ansible-playbook", "-i", str(inventory), "-e", json.dumps(variables), str(path)]
        report = run(command, {**environment(self.work), **JSON, "ANSIBLE_PIPELINING": "true"})
        found: list[dict[str, Any]] = json.loads(report)["plays"]
        return found

    def checks(self, names: list[str], expect: dict[str, Any]) -> bool:
        """The checks of an image, as Molecule and verify_image run them."""
        path = self.work / "expect.json"
        path.write_text(json.dumps(expect), encoding="utf-8")
        config = str(self.work / "ssh_config")
        folder = CHECKOUT / "roles/verify_image/files/checks"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hosts=ssh://vm", "--sudo"]
        command += [f"--ssh-config={config}", *(f"test_{name}.py" for name in names)]
        extra = {"GOLDSMITH_SSH_CONFIG": config, "GOLDSMITH_EXPECT": str(path)}
        done = subprocess.run(command, cwd=folder, env={**os.environ, **extra}, check=False, stdout=sys.stderr)
        return done.returncode == 0


def note(text: str) -> None:
    print(f"bench: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(command: list[str], env: dict[str, str], cwd: Path = CHECKOUT) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(command)} failed\n{done.stdout[-6000:]}{done.stderr[-3000:]}")
    return done.stdout


#: For an ansible command whose output is to be read: one JSON object.
JSON = {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}


def environment(work: Path) -> dict[str, str]:
    collections = [str(CHECKOUT / ".venv/collections"), os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")]
    return {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(filter(None, collections)),
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "ANSIBLE_NOCOLOR": "1",
        "PY_COLORS": "0",
        "MOLECULE_EPHEMERAL_DIRECTORY": str(work),
    }


@contextlib.contextmanager
def machine(scenario: str, **settings: str) -> Iterator[Machine]:
    """A machine as the scenario has it; settings are Molecule's, such as MOLECULE_PACKAGES."""
    # Or a bench that is ended would leave the machine behind.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="gi-mol-") as folder:
        molecule = [sys.executable, "-m", "molecule"]
        env = {**environment(Path(folder)), **settings}
        try:
            run([*molecule, "create", "--scenario-name", scenario], env)
            yield Machine(Path(folder))
        finally:
            run([*molecule, "destroy", "--scenario-name", scenario], env)
