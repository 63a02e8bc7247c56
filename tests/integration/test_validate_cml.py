# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook validate_cml.yml beside a stand-in of a CML host on its real ports, in a network namespace.

Where an instance of a simulated cloud is looked at too, the stand-in is on other ports: the cloud is outside.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.cloud import KEYS, Cloud
from ansible_collections.goldsmith.images.tests.support.cloud_launch import Moment, launched
from ansible_collections.goldsmith.images.tests.support.cml_controller import serve

CHECKOUT = Path(__file__).resolve().parents[2]
STAND_IN = "ansible_collections.goldsmith.images.tests.support.cml_controller"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
PASSWORD = "correct-horse-battery"
pytestmark = pytest.mark.skipif(
    NGINX is None or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="needs nginx, iproute2, and root for a network namespace",
)


def validate(
    tmp_path: Path, ansible_env: dict[str, str], scene: str, **variables: Any
) -> tuple[int, str, dict[str, Any]]:
    """Exit status, output and report of the playbook beside a stand-in."""
    report = tmp_path / "report.json"
    playbook = [
        "ansible-playbook",
        str(CHECKOUT / "playbooks/validate_cml.yml"),
        *("-e", json.dumps({"cml_host": "localhost", "cml_report": str(report), **variables})),
        *("-e", "cml_ca_path=$CA_PATH"),
    ]
    beside = [sys.executable, "-m", STAND_IN, str(tmp_path / "site"), str(NGINX), scene]
    quoted = " ".join(f"'{word}'" if "$" not in word else f'"{word}"' for word in playbook)
    (tmp_path / "site").mkdir()
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *beside, "sh", "-c", quoted],
        env={
            **ansible_env,
            "PYTHONPATH": ansible_env["ANSIBLE_COLLECTIONS_PATH"],
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        },
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    output = done.stdout + done.stderr
    assert report.exists(), output
    return done.returncode, output, json.loads(report.read_text())


def results(report: dict[str, Any]) -> dict[str, str]:
    return {row["check"]: row["result"] for row in report["rows"]}


def test_healthy_host(tmp_path: Path, ansible_env: dict[str, str]) -> None:
    code, output, report = validate(tmp_path, ansible_env, "healthy", cml_expect_version=">=2.8")
    assert code == 0, output
    rows = results(report)
    assert list(rows)[:7] == ["tcp", "certificate", "web", "api", "ready", "auth", "health"]
    assert list(rows)[7:] == ["port 443", "port 80", "port 1122", "port 22", "port 9090"]
    assert set(rows.values()) == {"pass"}
    assert "CHECK        RESULT DETAIL" in output
    assert "port 1122    pass   SSH of the host, SSH-2.0-OpenSSH_9.6" in output
    assert "changed=0" in output
    assert (report["version"], report["ok"], report["level"]) == ("2.9.1+build.7", True, "health")
    assert PASSWORD not in output and PASSWORD not in json.dumps(report)


@pytest.mark.parametrize(
    ("scene", "failed", "message"),
    [
        ("down", {"api": "fail", "ready": "skip"}, "the controller behind it is not"),
        ("never-ready", {"api": "pass", "ready": "fail", "auth": "skip"}, "will not become ready by waiting"),
        (
            "no-ssh",
            {"health": "pass", "port 1122": "fail", "port 22": "pass"},
            "port 1122 (SSH of the host) is not open",
        ),
    ],
)
def test_broken_host(
    tmp_path: Path, ansible_env: dict[str, str], scene: str, failed: dict[str, str], message: str
) -> None:
    code, output, report = validate(tmp_path, ansible_env, scene, cml_wait=6 if scene == "never-ready" else 0)
    assert code != 0
    rows = results(report)
    assert {name: rows[name] for name in failed} == failed
    assert message in " ".join(output.split())
    assert report["ok"] is False
    if scene == "never-ready":
        assert report["never_ready_reason"] == "no_kvm"


@pytest.mark.parametrize("console", ["Cloud-init v. 25.1 finished", "runcmd: 3: Syntax error: redirection unexpected"])
def test_instance_on_ec2(tmp_path: Path, ansible_env: dict[str, str], cloud: Cloud, console: str) -> None:
    good, report = "finished" in console, tmp_path / "report.json"
    cloud.image(name="cml")
    environment = {
        **ansible_env,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        "AWS_ACCESS_KEY_ID": KEYS["access_key"],
        "AWS_SECRET_ACCESS_KEY": KEYS["secret_key"],
        "AWS_ENDPOINT_URL": cloud.url,
        "AWS_REGION": "eu-west-1",
    }
    (tmp_path / "site").mkdir()
    with launched() as machines, serve(tmp_path / "site", str(NGINX)) as site:
        variables = {
            "cml_host": site.url(),
            "cml_ca_path": site.ca_path,
            "cml_ports": [site.ports["good"]],
            "cml_instance_id": machines.start(Moment(console=console)).id,
            "cml_report": str(report),
            "cml_wait": 600,
        }
        if not good:
            site.controller.stop()
        command = ["ansible-playbook", str(CHECKOUT / "playbooks/validate_cml.yml"), "-e", json.dumps(variables)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )
    output, found = " ".join((done.stdout + done.stderr).split()), json.loads(report.read_text())
    rows = results(found)
    # Nothing is waited for on a machine that is broken.
    assert found["ok"] is (done.returncode == 0) is good, output
    assert list(rows)[1:3] == ["system_status", "instance_status"]
    assert rows["ssm"] == "pass" and rows["ready"] == ("pass" if good else "skip")
    assert rows["console" if good else "console shell_syntax"] == ("pass" if good else "fail")
    assert found["instance"]["ok"] is good
    if not good:
        assert f"1 line: {console}; level ready is not reached" in output and "begin it with #!/bin/bash" in output
        assert found["instance"]["console_tail"] == [console]


def test_host_is_required(ansible_env: dict[str, str], tmp_path: Path) -> None:
    environment = {**ansible_env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
    environment.pop("CML_HOST", None)
    command = ["ansible-playbook", str(CHECKOUT / "playbooks/validate_cml.yml")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "-e cml_host=cml.example.com" in done.stdout
