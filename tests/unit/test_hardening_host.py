# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role hardening sees of a machine: the ports of SSH, by what the programs print."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles/hardening/files/hardening_host.py"

# `ss -Htnap` of Debian 13: sshd moved to another port, two logins, a web server.
MOVED = """\
LISTEN 0      128      0.0.0.0:2222    0.0.0.0:*     users:(("sshd",pid=13,fd=7))
LISTEN 0      5        0.0.0.0:8080    0.0.0.0:*     users:(("python3",pid=16,fd=3))
ESTAB  0      0      127.0.0.1:2222  127.0.0.1:32776 users:(("sshd-session",pid=23,fd=7),("sshd-session",pid=19,fd=7))
ESTAB  0      0      127.0.0.1:32776 127.0.0.1:2222  users:(("ssh",pid=14,fd=3))
LISTEN 0      128         [::]:2222       [::]:*     users:(("sshd",pid=13,fd=6))
ESTAB  0      0          [::1]:2222      [::1]:55022 users:(("sshd-session",pid=22,fd=7),("sshd-session",pid=18,fd=7))
ESTAB  0      0          [::1]:55022     [::1]:2222  users:(("ssh",pid=15,fd=3))
"""
# The same with sshd stopped: who came in by the old port is still there.
LEFT = "\n".join(line for line in MOVED.splitlines() if "LISTEN" not in line)
# Ubuntu: systemd listens, and there is no sshd before somebody comes.
WAITING = """\
LISTEN 0      4096           0.0.0.0:22        0.0.0.0:*    users:(("systemd",pid=1,fd=87))
LISTEN 0      4096                 *:9090            *:*    users:(("systemd",pid=1,fd=90))
"""
# Somebody's forwards: a port of his own on loopback (-R), and a connection to a server behind (-L).
FORWARDS = """\
LISTEN 0      128      0.0.0.0:22      0.0.0.0:*     users:(("sshd",pid=13,fd=7))
LISTEN 0      128    127.0.0.1:8080    0.0.0.0:*     users:(("sshd",pid=19,fd=9))
LISTEN 0      128        [::1]:8080       [::]:*     users:(("sshd",pid=19,fd=8))
ESTAB  0      0     192.0.2.10:22   192.0.2.77:50112 users:(("sshd",pid=19,fd=4))
ESTAB  0      0     192.0.2.10:46892 192.0.2.20:5432 users:(("sshd",pid=19,fd=10))
"""
SOCKET = "Listen=0.0.0.0:22 (Stream)\nListen=[::]:2022 (Stream)\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hardening_host", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("connections", "sockets", "ports"),
    [
        pytest.param(MOVED, "", {2222}, id="moved"),
        pytest.param(LEFT, "", {2222}, id="only open connections"),
        pytest.param(WAITING, SOCKET, {22, 2022}, id="ssh.socket"),
        pytest.param(MOVED, SOCKET, {22, 2022, 2222}, id="both"),
        pytest.param(FORWARDS, "", {22}, id="forwards"),
        pytest.param("", "", set(), id="nothing"),
    ],
)
def test_ports_of_ssh(script: ModuleType, connections: str, sockets: str, ports: set[int]) -> None:
    assert script.ssh_ports(connections, sockets, range(32768, 61000)) == ports
