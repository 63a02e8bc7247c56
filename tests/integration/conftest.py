# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared fixtures of the integration tests: modules are run by the real ``ansible`` command, as a user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from ansible_collections.goldsmith.images.tests.support.cloud import Cloud

CHECKOUT = Path(__file__).resolve().parents[2]
COLLECTION = Path("ansible_collections/goldsmith/images")


class RunModule(Protocol):
    def __call__(
        self,
        name: str,
        /,
        *,
        _check: bool = False,
        _diff: bool = False,
        _env: dict[str, str] | None = None,
        _python: str = sys.executable,
        _timeout: float = 300,
        **params: Any,
    ) -> dict[str, Any]: ...


@pytest.fixture(scope="session")
def collections_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A value for ANSIBLE_COLLECTIONS_PATH under which this checkout is found."""
    given = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
    for root in [*given.split(os.pathsep), str(CHECKOUT / ".venv" / "collections")]:
        if root and (Path(root) / COLLECTION).exists():
            return os.pathsep.join([root, *(p for p in given.split(os.pathsep) if p and p != root)])
    tree = tmp_path_factory.mktemp("collections")
    link = tree / COLLECTION
    link.parent.mkdir(parents=True)
    link.symlink_to(CHECKOUT)
    return str(tree)


@pytest.fixture(scope="session")
def ansible_env(collections_path: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment for Ansible commands: this checkout's collection, nothing of the user's own configuration."""
    home = tmp_path_factory.mktemp("ansible_home")
    (home / "ansible.cfg").touch()
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "ANSIBLE_COLLECTIONS_PATH": collections_path,
        "ANSIBLE_CONFIG": str(home / "ansible.cfg"),
        "ANSIBLE_HOME": str(home),
        "ANSIBLE_LOCAL_TEMP": str(home / "tmp"),
        "ANSIBLE_REMOTE_TMP": str(home / "remote"),
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
    }


@pytest.fixture(scope="session")
def run_module(ansible_env: dict[str, str]) -> RunModule:
    """``run_module("kvm_check", level="usable") -> result``: one module of this collection through ``ansible``.

    A failed module is a result with ``failed: true``, not an exception. Options of the runner start with an
    underscore, so that they cannot collide with parameters of a module: ``_check``, ``_diff``, ``_env``, ``_python``,
    ``_timeout``.
    """
    ansible = shutil.which("ansible", path=ansible_env["PATH"])
    if ansible is None:
        pytest.skip("the ansible command is not installed")

    def run(
        name: str,
        /,
        *,
        _check: bool = False,
        _diff: bool = False,
        _env: dict[str, str] | None = None,
        _python: str = sys.executable,
        _timeout: float = 300,
        **params: Any,
    ) -> dict[str, Any]:
        command = [ansible, "localhost", "-i", "localhost,", "-c", "local"]
        command += ["-e", f"ansible_python_interpreter={_python}"]
        command += ["-m", name if "." in name else f"goldsmith.images.{name}"]
        if params:  # an empty object would be taken for free-form text
            command += ["-a", json.dumps(params)]
        command += ["--check"] * _check + ["--diff"] * _diff
        done = subprocess.run(
            command,
            env={**ansible_env, **(_env or {})},
            cwd=ansible_env["ANSIBLE_HOME"],  # an ansible.cfg of the current folder must not take part
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_timeout,
            check=False,
        )
        try:
            report = json.loads(done.stdout[done.stdout.index("{") :])
            result = report["plays"][0]["tasks"][0]["hosts"]["localhost"]
        except (ValueError, LookupError) as exc:
            raise AssertionError(f"no result from {name}: rc={done.returncode}\n{done.stdout}\n{done.stderr}") from exc
        result.setdefault("failed", done.returncode != 0)
        return result

    return run


@pytest.fixture(scope="session")
def running_cloud() -> Iterator[Cloud]:
    """One simulated cloud for all tests; to be used through `cloud`."""
    from ansible_collections.goldsmith.images.tests.support.cloud import Cloud  # loads moto: for who needs it only

    with Cloud.running() as cloud:
        yield cloud


@pytest.fixture
def cloud(running_cloud: Cloud) -> Cloud:
    """An empty simulated cloud with its default settings."""
    running_cloud.reset()
    return running_cloud
