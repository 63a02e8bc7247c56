# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds in the background (``async``): waited for, looked at later, left behind by the play, and out of time."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.packer_build import (
    SHELL_TEMPLATE,
    marked,
    needs_packer,
    needs_qemu,
    playbook_command,
    write_playbook,
)
from ansible_collections.goldsmith.images.tests.support.processes import wait_until

pytestmark = needs_packer
SECRET = "s3cret in the background"
STATUS = {
    "name": "Wait for the end",
    "ansible.builtin.async_status": {"jid": "{{ job.ansible_job_id }}"},
    "register": "status",
    "until": "status is finished",
    "retries": 60,
    "delay": 0.5,
}


def run(ansible_env: dict[str, str], folder: Path, task: dict[str, Any], *more: dict[str, Any], **params: Any) -> Any:
    """A play with the module under these keywords, and further tasks: its return code and the tasks' results."""
    playbook = write_playbook(folder / "play.yml", **params)
    [play] = yaml.safe_load(playbook.read_text())
    play["tasks"] = [{**play["tasks"][0], **task}, *more]
    playbook.write_text(yaml.safe_dump([play]))
    env = {**ansible_env, "ANSIBLE_ASYNC_DIR": str(folder / "async")}
    command = playbook_command(env, playbook)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return done.returncode, [result["hosts"]["localhost"] for result in report["plays"][0]["tasks"]]


@pytest.fixture
def shell(work: Path, no_leftovers: dict[str, str]) -> dict[str, Any]:
    (work / "shell.pkr.hcl").write_text(SHELL_TEMPLATE)
    secret = {"pw": SECRET}
    return {"template": str(work / "shell.pkr.hcl"), "sensitive_variables": secret, "environment": no_leftovers}


@pytest.mark.parametrize("poll", [1, 0])
def test_result_is_the_same_as_without(
    ansible_env: dict[str, str], tmp_path: Path, shell: dict[str, Any], poll: int
) -> None:
    more = [] if poll else [STATUS]
    keywords = {"async": 60, "poll": poll, "register": "job"}
    code, results = run(ansible_env, tmp_path, keywords, *more, **shell, progress_path=str(tmp_path / "progress.json"))
    result = results[-1]
    assert code == 0, result
    assert result["builds"][0]["status"] == "success"
    for name in (
        "ansible_job_id",
        "started",
        "finished",
        "results_file",
        "stdout",
        "stderr",
        "stdout_lines",
        "attempts",
    ):
        result.pop(name, None)
    result.pop("stderr_lines", None)
    documented.check_returned("packer_build", result)
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "finished"
    assert SECRET not in json.dumps(results)
    kept = [path for path in (tmp_path / "async").rglob("*") if path.is_file()]
    assert not [path for path in kept if SECRET in path.read_text()]


def test_failure_and_time_out_come_through(ansible_env: dict[str, str], tmp_path: Path, shell: dict[str, Any]) -> None:
    code, [failed] = run(ansible_env, tmp_path, {"async": 60, "poll": 1}, **shell, variables={"rc": "3"})
    assert (code, failed["phase"]) == (2, "provision")
    assert "Script exited with non-zero exit status: 3" in failed["msg"]
    code, [late] = run(ansible_env, tmp_path, {"async": 60, "poll": 1}, **shell, timeout=1)
    assert (code, late["timed_out"]) == (2, True)


def test_build_outlives_the_play_that_does_not_wait(
    ansible_env: dict[str, str], tmp_path: Path, shell: dict[str, Any], work: Path
) -> None:
    code, [job] = run(ansible_env, tmp_path, {"async": 60, "poll": 0}, **shell)
    assert (code, job["started"]) == (0, 1)
    results = tmp_path / "async" / job["ansible_job_id"]
    wait_until(lambda: json.loads(results.read_text()).get("builds"), 60, "the result of the job")
    assert json.loads(results.read_text())["builds"][0]["status"] == "success"
    assert list((work / ".packer_build").glob("*.json"))


@needs_qemu
@pytest.mark.slow_matrix
def test_time_limit_of_the_job_ends_the_build(
    ansible_env: dict[str, str], tmp_path: Path, qemu_template: Path, no_leftovers: dict[str, str]
) -> None:
    """Ansible kills the module then; what the build has started ends all the same."""
    hang = {"template": str(qemu_template), "variables": {"disk": "hang.raw"}, "cancel_grace": 5}
    code, [job] = run(ansible_env, tmp_path, {"async": 8, "poll": 0}, **hang, environment=no_leftovers)
    assert (code, job["started"]) == (0, 1)
    wait_until(lambda: any("out/t.qcow2" in x for x in marked(no_leftovers["MARK"])), 60, "the virtual machine")
    wait_until(lambda: not marked(no_leftovers["MARK"]), 60, "the end of the build")
    after = {"template": str(qemu_template), "environment": no_leftovers}
    code, [made] = run(ansible_env, tmp_path, {}, **after)
    assert code == 0, made["msg"]
