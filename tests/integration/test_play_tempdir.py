# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory lives as long as the play, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.tests.support.processes import wait_until

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - goldsmith.images.play_tempdir:
        files: {key: "a secret\\n"}
        link: "{{ report }}.link"
      register: made
    - ansible.builtin.copy:
        content: "{{ made.path }}"
        dest: "{{ report }}"
        mode: "0600"
    - ansible.builtin.wait_for:
        path: "{{ report }}.go"
"""


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGKILL], ids=["end", "ctrl-c", "kill"])
def test_it_is_gone_after_the_play(ansible_env: dict[str, str], tmp_path: Path, number: signal.Signals | None):
    playbook, report = tmp_path / "play.yml", tmp_path / "report"
    playbook.write_text(PLAY)
    command = ["ansible-playbook", str(playbook), "-e", f"report={report}"]
    play = subprocess.Popen(
        command, env=ansible_env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: report.exists() and report.read_text())
        directory = Path(report.read_text())
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "key").stat().st_mode & 0o777 == 0o600
        assert Path(f"{report}.link/key").read_text() == "a secret\n"
        if number is None:
            Path(f"{report}.go").touch()
        else:
            # Again until it ends, as a user would: a Ctrl-C in the moment of a fork is lost in ansible-core 2.19.
            wait_until(lambda: play.poll() is not None or os.killpg(play.pid, number), pause=1)
        play.wait(60)
        wait_until(lambda: not directory.exists())
    finally:
        if play.poll() is None:
            os.killpg(play.pid, signal.SIGKILL)
            play.wait()
