# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ICMP echo while somebody else on the machine asks for a host that cannot be reached."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from ansible_collections.goldsmith.images.tests.support import network
from ansible_collections.goldsmith.images.tests.support.network import Namespace, address, cable

pytestmark = network.needed

PEER = "192.0.2.1"
ECHO = f"""
import socket, subprocess, sys
sys.path.insert(0, {network.collections_root()!r})
from ansible_collections.goldsmith.images.plugins.module_utils._net_icmp import echo

class Socket(socket.socket):
    def connect(self, target):
        other = subprocess.run(["ping", "-c", "1", "198.18.2.1"], capture_output=True, text=True)
        assert "Unreachable" in other.stdout, other
        super().connect(target)

socket.socket = Socket
print(echo(socket.AF_INET, ("{PEER}", 0), [60], 2).refusal)
"""


def test_errors_of_others_are_not_ours(tmp_path: Path) -> None:
    with closing(Namespace("router", tmp_path)) as router, closing(Namespace("client", tmp_path)) as client:
        cable(client, "eth0", router, "c0")
        address(router, "c0", f"{PEER}/24")
        address(client, "eth0", "192.0.2.2/24")
        client.ip(f"route add default via {PEER}")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        router.ip("route add unreachable 198.18.2.0/24")
        assert client.run(sys.executable, "-I", "-B", "-c", ECHO) == "None\n"
