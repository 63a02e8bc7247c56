# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of packer_build are run: check mode, the build, and once more."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.packer_build import (
    FILE_TEMPLATE,
    POWER_OFF,
    QEMU_TEMPLATE,
    boot_disk,
    needs_packer,
    needs_qemu,
)

pytestmark = needs_packer
MODULE = "goldsmith.images.packer_build"
PAGE = documented.MODULES.parents[1] / "docs/packer_build.md"
# What the templates of the examples would have, in a build that takes seconds.
VARIABLES = 'variable "memory" { type = number }\nvariable "disk_size" {}\n'

Play = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def play(ansible_env: dict[str, str], tmp_path: Path) -> Play:
    """Run plays; what their tasks returned."""

    def run(plays: list[dict[str, Any]], *arguments: str) -> list[dict[str, Any]]:
        (tmp_path / "play.yml").write_text(json.dumps(plays))
        command = [str(shutil.which("ansible-playbook", path=ansible_env["PATH"])), "-i", "localhost,", "-c", "local"]
        command += ["-e", "ansible_python_interpreter={{ ansible_playbook_python }}", *arguments, "play.yml"]
        # Progress goes to the standard error, because the other one is JSON.
        done = subprocess.run(command, cwd=tmp_path, env=ansible_env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        [report] = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
        return [task["hosts"]["localhost"] for task in report["tasks"]]

    return run


@needs_qemu
def test_examples_of_the_module(play: Play, tmp_path: Path) -> None:
    for folder in ("scripts", "http", "app/out"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "scripts/install.sh").touch()
    (tmp_path / "http/preseed.cfg").touch()
    boot_disk(tmp_path / "off.raw", POWER_OFF)
    (tmp_path / "debian.pkr.hcl").write_text(VARIABLES + QEMU_TEMPLATE)
    (tmp_path / "app/app.pkr.hcl").write_text(FILE_TEMPLATE.replace('"pw"', '"registry_password"'))
    text = json.dumps(documented.section("packer_build", "EXAMPLES"))
    tasks = json.loads(re.sub("/srv/images|/var/log", str(tmp_path), text))
    plays = [
        {"hosts": "localhost", "gather_facts": False, "vars": {"vault_registry_password": "v4ult"}, "tasks": tasks}
    ]

    checked = play(plays, "--check")
    assert not (tmp_path / "out").exists()
    built = play(plays)
    image = tmp_path / "out/t.qcow2"
    assert image.read_bytes()[:4] == b"QFI\xfb"
    assert (tmp_path / "app-image.log").is_file()
    assert built[-1]["msg"] == [str(tmp_path / "app/out/a.txt")]
    again = play(plays)
    for results, changed in ((checked, True), (built, True), (again, False)):
        for result in results[:2]:
            assert result["changed"] is changed
            documented.check_returned("packer_build", result)
    assert [sorted(result) for result in checked[:2]] == [sorted(result) for result in built[:2]]
    assert "v4ult" not in json.dumps([checked, built, again])


def test_examples_of_the_page(play: Play, tmp_path: Path) -> None:
    [template] = re.findall(r"```hcl\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "hello").mkdir()
    (tmp_path / "hello/hello.pkr.hcl").write_text(template)
    [plays] = documented.blocks(PAGE.name)
    first, said, background = play(plays)
    documented.check_returned("packer_build", first)
    assert first["changed"]
    assert said["msg"] == f"no earlier build is recorded in {first['state_path']}: ['{tmp_path}/hello.txt']"
    assert background["changed"]
    assert (tmp_path / "hello.txt").read_text() == "Good day, 4 characters of a secret\n"
    assert (tmp_path / "hello.log").is_file()
    subprocess.run(["packer", "fmt", "-check", "hello"], cwd=tmp_path, check=True)
