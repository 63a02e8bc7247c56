# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first step of verify_image, without the machines: what the disk says is a test a rule in its JUnit file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import small_disk

pytestmark = pytest.mark.skipif(bool(small_disk.missing()), reason=small_disk.missing())

ROLE = Path(__file__).resolve().parents[2] / "roles/verify_image"
MACHINE = {"etc/machine-id": "", "etc/hostname": "localhost\n", "root/.bash_history": "pass\n"}


def read_disk(env: dict[str, str], work: Path, image: Path, **hygiene: Any) -> tuple[int, str, dict[str, Any]]:
    """Run the step; return its exit code, its output, and what verify_image makes of the round."""
    shutil.copytree(ROLE / "files/checks", work / "checks", dirs_exist_ok=True)
    variables = {
        "ansible_python_interpreter": sys.executable,
        "verify_image_path": str(image),
        "verify_image_work_dir": str(work),
        "verify_image_hygiene": hygiene,
        "__verify_image_marks": [],
        "__verify_image_rounds": [],
        "__verify_image_private": {"path": str(work)},
    }
    step = {"ansible.builtin.include_role": {"name": "goldsmith.images.verify_image", "tasks_from": "read_disk"}}
    kept = {"ansible.builtin.copy": {"dest": f"{work}/rounds.json", "content": "{{ __verify_image_rounds | to_json }}"}}
    play = {"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": [step, kept]}
    (work / "play.json").write_text(json.dumps([play]))
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-c", "local", "play.json"],
        cwd=work, env={**env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        return done.returncode, done.stdout + done.stderr, {}
    command = [sys.executable, ROLE / "files/summarise.py", work / "junit.xml", (work / "rounds.json").read_text()]
    found = subprocess.run([*command, '["disk_hygiene"]'], check=True, capture_output=True, text=True)
    return 0, done.stdout, json.loads(found.stdout)


def test_a_violation_fails_the_verification(ansible_env: dict[str, str], tmp_path: Path) -> None:
    for name, content in MACHINE.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(content)
    (tmp_path / "root/etc/machine-id").chmod(0o444)
    raw = small_disk.make_raw(tmp_path / "root", tmp_path / "disk.raw")
    image = small_disk.make_qcow2(raw, tmp_path / "image.qcow2", "zstd")

    code, output, found = read_disk(ansible_env, tmp_path, image)
    assert code == 0, output
    assert found["failures"] == 1 and found["problems"] == [], found
    [failed] = found["failed"]
    assert failed["test"] == "disk_hygiene::test_disk_keeps_the_rule[histories] (finished disk)"
    assert "/root/.bash_history: must not be there" in failed["message"]
    cases = {case.get("name") for case in ET.parse(tmp_path / "junit.xml").getroot().iter("testcase")}
    assert {"test_disk_keeps_the_rule[machine_id_empty]", "test_all_of_the_disk_was_read"} <= cases

    # The exceptions of the one who cleaned up reach the one who checks.
    code, output, found = read_disk(ansible_env, tmp_path, image, keep_paths=["/root/.bash_history"])
    assert (code, found.get("failures")) == (0, 0), output
    assert found["tests"] > 40


def test_an_image_that_cannot_be_read_ends_the_verification(ansible_env: dict[str, str], tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(600))
    code, output, _found = read_disk(ansible_env, tmp_path, image)
    assert code != 0
    assert "this qcow2 image cannot be read" in " ".join(output.split())
