# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The build of a CML image fails with the hint of the check that failed. Each check fails here for a real reason."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _kvm
from ansible_collections.goldsmith.images.tests.support.cml_controller import free_port

without_network = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root for a network namespace"
)


def apply(
    tmp_path: Path, ansible_env: dict[str, str], *prefix: str, package: str = "", **variables: Any
) -> tuple[int, str]:
    """Apply the role to this machine; with a host for the user interface it changes nothing."""
    variables = {"cloud_init": [], **variables}
    variables = {f"cml_build_checks_{name}": value for name, value in variables.items()} | {"cml_host_package": package}
    play = [
        {"hosts": "localhost", "gather_facts": False, "roles": ["goldsmith.images.cml_build_checks"], "vars": variables}
    ]
    path = tmp_path / "play.json"
    path.write_text(json.dumps(play))
    done = subprocess.run(
        [
            *prefix,
            "ansible-playbook",
            "-i",
            "localhost,",
            "-c",
            "local",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            str(path),
        ],
        env={**ansible_env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_mock_beside_a_package(tmp_path: Path, ansible_env: dict[str, str]) -> None:
    code, output = apply(tmp_path, ansible_env, keep_mock_gui=True, package="/srv/cml2.pkg")
    assert code != 0
    assert "cml_build_checks_keep_mock_gui and cml_host_package exclude each other" in output
    assert "whether KVM works" not in output


def test_kvm(tmp_path: Path, ansible_env: dict[str, str]) -> None:
    if _kvm.judge(_kvm.probe("/dev/kvm", platform.machine(), 1000, 50.0, 2.0), 50.0).accelerated:
        pytest.skip("KVM is accelerated here")
    code, output = apply(tmp_path, ansible_env, gui_host="https://localhost")
    assert code != 0
    assert "KVM does not reach the level accelerated here" in output
    assert re.search(r"the level accelerated here \(\w+\)\. [A-Z/]\w+ ", output)  # the hint


@without_network
def test_network(tmp_path: Path, ansible_env: dict[str, str]) -> None:
    code, output = apply(tmp_path, ansible_env, "unshare", "--net", kvm="report", gui_host="https://localhost")
    assert code != 0
    assert "checks of the network did not pass" in output
    assert "-> " in output  # the hint
    assert "how far the user interface has come" not in output


@pytest.mark.parametrize("name", ["cloud_init", "user_data"])
def test_bash_that_dash_cannot_read(tmp_path: Path, ansible_env: dict[str, str], name: str) -> None:
    text = "#cloud-config\nruncmd:\n  - exec > >(tee /var/log/provision.log) 2>&1\n"
    value: Any = text
    if name == "cloud_init":
        (tmp_path / "90-provision.cfg").write_text(text)
        value = [str(tmp_path / "90-provision.cfg")]
    code, output = apply(tmp_path, ansible_env, kvm="report", gui_host="https://localhost", **{name: value})
    assert code != 0
    assert "redirection unexpected" in output
    assert "cmd >file 2>&1" in output  # the correction
    assert "how far the user interface has come" not in output


def test_user_interface(tmp_path: Path, ansible_env: dict[str, str]) -> None:
    host = f"https://127.0.0.1:{free_port()}"
    code, output = apply(tmp_path, ansible_env, kvm="report", gui_host=host, gui_wait=1)
    assert code != 0
    assert "level ready is not reached (refused)" in output
    assert "systemctl status nginx" in output
