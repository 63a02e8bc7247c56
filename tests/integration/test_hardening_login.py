# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role hardening logs in anew beside the connection that is open, the way that the user says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import ssh_server

ROLE = "goldsmith.images.hardening"
# As with a jump host: without this argument there is no way to the machine.
WAY = f"{ssh_server.CLIENT} -o HostName=127.0.0.1"
MULTIPLEXED = "-o ControlMaster=auto -o ControlPersist=60s"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    folder = tmp_path_factory.mktemp("sshd")
    with ssh_server.running(folder) as host:
        yield host, folder


def play(
    server: tuple[dict[str, Any], Path],
    env: dict[str, str],
    work: Path,
    *options: str,
    meanwhile: str = "true",
    **variables: str,
) -> tuple[subprocess.CompletedProcess[str], int]:
    """A connection is open, something happens over it, the role logs in anew. How many logins that took."""
    settings, folder = server
    host = {name: value for name, value in settings.items() if name != "ansible_ssh_common_args"}
    host.update(ansible_host="machine.invalid", ansible_ssh_args=MULTIPLEXED)
    (work / "inventory.json").write_text(json.dumps({"all": {"hosts": {"machine": host}}}))
    tasks = [
        {"ansible.builtin.raw": meanwhile},
        {"ansible.builtin.include_role": {"name": ROLE, "tasks_from": "login.yml"}},
        {"ansible.builtin.raw": "true"},
    ]
    steps = [{"block": tasks, "always": [{"ansible.builtin.meta": "reset_connection"}]}]
    content = [{"hosts": "all", "gather_facts": False, "vars": variables, "tasks": steps}]
    (work / "play.json").write_text(json.dumps(content))
    log = folder / "sshd.log"
    before = log.read_text().count("Accepted publickey")
    done = subprocess.run(
        ["ansible-playbook", "-i", "inventory.json", *options, "play.json"],
        cwd=work,
        env={**env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, log.read_text().count("Accepted publickey") - before


@pytest.mark.parametrize("said", ["environment", "option", "extra option", "play", "file of ssh"])
def test_goes_the_way_of_the_user_anew(
    server: tuple[dict[str, Any], Path], ansible_env: dict[str, str], tmp_path: Path, said: str
) -> None:
    env, options, variables = ansible_env, [], {}
    if said == "environment":
        env = {**ansible_env, "ANSIBLE_SSH_COMMON_ARGS": WAY}
    elif said == "option":
        options = ["--ssh-common-args", WAY]
    elif said == "extra option":
        options = ["--ssh-extra-args", WAY]
    elif said == "play":
        variables = {"way": WAY, "ansible_ssh_common_args": "{{ way }}", "ansible_ssh_extra_args": "{{ way }}"}
    else:
        lines = (pair.replace("=", " ", 1) for pair in WAY.replace("-F /dev/null ", "").split("-o ") if pair)
        multiplexed = f"ControlMaster auto\nControlPersist 60\nControlPath {tmp_path}/c\n"
        (tmp_path / "ssh_config").write_text("Host *\n" + "\n".join(lines) + "\n" + multiplexed)
        variables = {"ansible_ssh_args": f"-F {tmp_path}/ssh_config"}
    done, logins = play(server, env, tmp_path, *options, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert logins == 2


def test_notices_that_nobody_gets_in(
    server: tuple[dict[str, Any], Path], ansible_env: dict[str, str], tmp_path: Path
) -> None:
    keys = server[1] / "key.pub"
    env = {**ansible_env, "ANSIBLE_SSH_COMMON_ARGS": WAY}
    try:
        done, logins = play(server, env, tmp_path, meanwhile=f"mv {keys} {keys}.away")
    finally:
        keys.with_name("key.pub.away").rename(keys)
    assert done.returncode != 0
    assert "A new login over SSH does not work" in " ".join(done.stdout.split())
    assert logins == 1


def test_tries_again_while_there_is_no_way_in(
    server: tuple[dict[str, Any], Path], ansible_env: dict[str, str], tmp_path: Path
) -> None:
    """As after a reload, when sshd does not listen for a moment."""
    way = tmp_path / "way"
    way.touch()
    (tmp_path / "ssh_config").write_text(f'Match exec "test -e {way}"\n    HostName 127.0.0.1\n')
    without_name = ssh_server.CLIENT.replace("/dev/null", str(tmp_path / "ssh_config"), 1)
    env = {**ansible_env, "ANSIBLE_SSH_COMMON_ARGS": without_name}
    # The end of its terminal must not end it.
    back = f"trap '' HUP; (sleep 2; touch {way}) </dev/null >/dev/null 2>&1 &"
    done, logins = play(server, env, tmp_path, meanwhile=f"rm {way}; {back}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert logins == 2
