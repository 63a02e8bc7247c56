# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers of `cloud-init status`, recorded from Debian 12's (22.4.2) and Debian 13's (25.1.4), mean the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _cloud_init_status
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_shell import Tools

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures/cloud_init"
RECORDED = sorted(path.stem.split("_", 2)[1:] for path in FIXTURES.glob("status_*.json"))


def cloud_init(folder: Path, script: str) -> Tools:
    """A program in place of cloud-init: it would report on the machine that the tests run on."""
    program = folder / "cloud-init"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Tools(time.monotonic() + 20, search=lambda name: str(folder / name))


def recorded(version: str, state_and_code: str) -> tuple[Path, str, int]:
    state, _unused, code = state_and_code.rpartition("_")
    return FIXTURES / f"status_{version}_{state_and_code}.json", state, int(code)


def test_both_versions_were_recorded() -> None:
    assert len(RECORDED) == 12


@pytest.mark.parametrize(("version", "name"), RECORDED, ids=["-".join(each) for each in RECORDED])
def test_every_version_tells_the_same_states(version: str, name: str, tmp_path: Path) -> None:
    path, state, code = recorded(version, name)
    status = _cloud_init_status.ask(cloud_init(tmp_path, f"cat '{path}'; exit {code}"), wait=0)
    # Before 23.4 nobody can tell that there were recoverable errors.
    expected = "done" if (version, state) == ("22.4.2", "degraded") else state
    assert (status.state, status.exit_code, status.timed_out) == (expected, code, False)
    assert (status.extended_status is None) is (version == "22.4.2")
    severities = {severity for severity, *_others in status.problems}
    assert severities == ({"done": set(), "error": {"error"}}.get(expected, {"warning"}))
    if expected == "error":
        assert "Runparts: 1 failures" in status.problems[0][2]
    if expected == "degraded":
        assert status.recoverable_errors["WARNING"][0].startswith("Failed to run module scripts_user")


@pytest.mark.parametrize("version", ["22.4.2", "25.1.4"])
def test_it_waits_until_the_end(version: str, tmp_path: Path) -> None:
    running, done = (FIXTURES / f"status_{version}_{state}_0.json" for state in ("running", "done"))
    script = f"if [ -e {tmp_path}/asked ]; then cat '{done}'; else touch {tmp_path}/asked; cat '{running}'; fi"
    status = _cloud_init_status.ask(cloud_init(tmp_path, script), wait=10)
    assert (status.state, status.timed_out) == ("done", False)


def test_one_that_never_ends_is_left_alone_after_a_while(tmp_path: Path) -> None:
    running = FIXTURES / "status_25.1.4_running_0.json"
    status = _cloud_init_status.ask(cloud_init(tmp_path, f"cat '{running}'"), wait=0.1)
    assert (status.state, status.timed_out) == ("running", True)
    [(severity, code, message, _unused)] = status.problems
    assert (severity, code) == ("error", "status-timeout") and "running" in message


@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & sleep 60", "trap '' TERM; sleep 60"])
def test_a_program_that_hangs_is_ended(script: str, tmp_path: Path) -> None:
    tools = cloud_init(tmp_path, script)
    tools.deadline = time.monotonic() + 0.3
    status = _cloud_init_status.ask(tools, wait=0)
    assert (status.state, status.timed_out) == ("unknown", True)


def test_output_that_a_child_keeps_open_does_not_block(tmp_path: Path) -> None:
    done = FIXTURES / "status_25.1.4_done_0.json"
    tools = cloud_init(tmp_path, f"sleep 3 & cat '{done}'")
    tools.deadline = time.monotonic() + 30
    assert _cloud_init_status.ask(tools, wait=0).state == "done"


def test_what_is_no_answer(tmp_path: Path) -> None:
    tools = cloud_init(tmp_path, "echo 'Traceback: broken' >&2; exit 1")
    status = _cloud_init_status.ask(tools, wait=0)
    assert (status.state, status.exit_code, status.detail) == ("unknown", 1, "Traceback: broken")
    assert _cloud_init_status.ask(Tools(time.monotonic() + 5, search=lambda name: None), wait=0).state == "missing"


def test_a_disabled_unit_is_named_as_a_cause() -> None:
    text = '{"status": "error", "extended_status": "error - done", "errors": ["Failed due to systemd unit failure."]}'
    [(*_others, hint)] = _cloud_init_status.read(text, 1).problems
    assert "disabled" in hint and "list-unit-files" in hint
