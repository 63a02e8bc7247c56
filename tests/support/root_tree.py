# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root trees of a distribution, to run roles in over the chroot connection: seconds instead of minutes in a guest."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

#: Releases for a parametrised fixture.
SUITES = ["trixie", pytest.param("bookworm", marks=pytest.mark.slow_matrix)]
PACKAGES = ("ca-certificates", "kmod", "procps", "python3", "python3-apt", "systemd", "systemd-sysv")

# In a private mount namespace, so that nothing stays mounted however the test ends.
ENTER = """\
set -e
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount --rbind /dev "$1/dev"
shift
exec "$@"
"""


def missing() -> str:
    """Why no tree can be made here; empty if it can."""
    if os.geteuid() != 0:
        return "a root tree needs root"
    tools = [name for name in ("mmdebstrap", "unshare") if shutil.which(name) is None]
    return f"not installed: {', '.join(tools)}" if tools else ""


@dataclasses.dataclass(frozen=True)
class Played:
    """The end of a play."""

    code: int
    output: str

    @property
    def recap(self) -> dict[str, int]:
        """The counters of the one host."""
        return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", self.output.rpartition("RECAP")[2])}


@dataclasses.dataclass(frozen=True)
class RootTree:
    path: Path

    def run(self, *command: str, check: bool = True) -> str:
        """A command inside the tree; its standard output."""
        enter = ["unshare", "--mount", "sh", "-c", ENTER, "sh", str(self.path), "chroot", str(self.path)]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "SYSTEMD_OFFLINE": "1"}
        done = subprocess.run([*enter, *command], env=environment, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def play(
        self, content: Sequence[str | dict[str, Any]], env: Mapping[str, str], *options: str, **variables: Any
    ) -> Played:
        """Run roles (names) and then tasks (mappings) against the tree with ansible-playbook."""
        work = self.path.parent / f"{self.path.name}.play"
        work.mkdir(exist_ok=True)
        host = {
            "ansible_connection": "community.general.chroot",
            "ansible_host": str(self.path),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        (work / "inventory.json").write_text(json.dumps({"all": {"hosts": {"tree": host}}}), encoding="utf-8")
        roles = [item for item in content if isinstance(item, str)]
        tasks = [item for item in content if not isinstance(item, str)]
        play = [{"hosts": "all", "gather_facts": False, "roles": roles, "tasks": tasks}]
        (work / "play.json").write_text(json.dumps(play), encoding="utf-8")
        (work / "vars.json").write_text(json.dumps(variables), encoding="utf-8")
        command = ["ansible-playbook", "-i", "inventory.json", "-e", "@vars.json", *options, "play.json"]
        enter = ["unshare", "--mount", "sh", "-c", ENTER, "sh", str(self.path)]
        environment = {**env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
        done = subprocess.run(
            [*enter, *command],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Played(done.returncode, done.stdout + done.stderr)

    def copy(self, path: Path) -> RootTree:
        subprocess.run(["cp", "--archive", "--reflink=auto", str(self.path), str(path)], check=True)
        return RootTree(path)


def bootstrap(path: Path, suite: str = "trixie", packages: Sequence[str] = PACKAGES) -> RootTree:
    """A new tree with package lists and a policy against starting services."""
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", suite, str(path)], check=True
    )
    policy = path / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    policy.chmod(0o755)
    tree = RootTree(path)
    tree.run("apt-get", "update", "--quiet")
    return tree


_made: dict[str, RootTree] = {}


def pristine(factory: pytest.TempPathFactory, suite: str = "trixie") -> RootTree:
    """One tree for all tests of a process; a test that writes takes a copy."""
    if suite not in _made:
        _made[suite] = bootstrap(factory.mktemp("root_tree") / suite, suite)
    return _made[suite]
