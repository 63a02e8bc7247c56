# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets that a build prints, in every form and however it ends, are found nowhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.packer_build import (
    needs_packer,
    playbook_command,
    write_playbook,
)

pytestmark = needs_packer

CANARY = "c4nary"
SECRETS = {
    "plain": f"{CANARY}-plain",
    "comma": f"{CANARY},{CANARY}x,y",
    "lines": f"{CANARY} line 1\nsecond {CANARY}\n\nlast {CANARY}, end\n",
    "quotes": f"{CANARY} \"double\" 'single' <&> \\ ${{x}}",
    "unicode": f"{CANARY}-gr\u00fc\u00dfe-\u2603",
}
VARIABLE = """
variable "{0}" {{
  type      = string
  sensitive = true
}}
"""
# Not environment_vars: Packer puts those on a command line.
PRINT = """"cat <<'E'", var.{0}, "E", "cat >&2 <<'E'", var.{0}, "E",
    """
TEMPLATE = f"""
variable "then" {{ default = "true" }}
source "null" "n" {{ communicator = "none" }}
{"".join(map(VARIABLE.format, SECRETS))}
build {{
  sources = ["source.null.n"]
  provisioner "shell-local" {{
    inline = [{"".join(map(PRINT.format, SECRETS))}"touch printed", "sleep 1.5", var.then]
  }}
}}
"""
ENDS = [
    pytest.param({}, 0, id="success"),
    pytest.param({"variables": {"then": "exit 3"}}, 2, id="failure"),
    pytest.param({"variables": {"then": "sleep 300"}}, 99, id="cancel"),
    pytest.param({"variables": {"then": "sleep 300"}, "timeout": 5, "cancel_grace": 5}, 2, id="time-out"),
    # Packer shows the line of the variable file that it does not like.
    pytest.param({"sensitive_variables": {**SECRETS, "plain": {"nested": SECRETS["plain"]}}}, 2, id="invalid"),
]


def command_lines() -> set[str]:
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            found.add((entry / "cmdline").read_bytes().decode(errors="replace"))
    return found


@pytest.mark.parametrize(("params", "rc"), ENDS)
def test_secret_is_found_nowhere(
    ansible_env: dict[str, str],
    tmp_path: Path,
    work: Path,
    no_leftovers: dict[str, str],
    params: dict[str, Any],
    rc: int,
) -> None:
    (work / "shell.pkr.hcl").write_text(TEMPLATE)
    playbook = write_playbook(
        tmp_path / "play.yml",
        **{
            "template": str(work / "shell.pkr.hcl"),
            "sensitive_variables": SECRETS,
            "log_path": "build.log",
            "progress_path": "progress.json",
            "packer_log": True,
            "environment": no_leftovers,
            **params,
        },
    )
    homes = {name: str(tmp_path / name) for name in ("ANSIBLE_HOME", "ANSIBLE_LOCAL_TEMP", "ANSIBLE_REMOTE_TMP")}
    env = {**ansible_env, **homes}
    seen: set[str] = set()
    with (tmp_path / "terminal").open("w") as terminal:
        process = subprocess.Popen(
            playbook_command(env, playbook, "-vvv"), env=env, stdout=terminal, stderr=terminal, start_new_session=True
        )
        interrupted = rc != 99
        while process.poll() is None:
            seen |= command_lines()
            time.sleep(0.05)
            if not interrupted and (work / "printed").exists():
                os.killpg(process.pid, signal.SIGINT)
                interrupted = True
    output = (tmp_path / "terminal").read_text()
    assert process.returncode == rc, output
    assert any("shell.pkr.hcl" in command for command in seen)
    assert not [command for command in seen if CANARY in command]
    if "sensitive_variables" not in params:
        assert (work / "printed").exists()
        assert (work / "build.log").read_text().count("********") >= 2 * len(SECRETS)
        assert (work / ".packer_build").is_dir()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != playbook]
    assert {path.name for path in written} >= {"build.log", "progress.json", "terminal"}
    for path in written:
        assert CANARY not in path.read_text(errors="replace"), path
