# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""networkd gives any physical interface an address, resolved answers, and a second interface can win."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from gather import gather, properties

if TYPE_CHECKING:
    from testinfra.host import Host

# A veth pair stands for the interfaces of pods.
GATHER = r"""
ip link add gi-veth0 type veth peer name gi-veth1
udevadm settle
section links; networkctl list --no-pager --no-legend
section veth; networkctl status gi-veth0 --no-pager
section physical; networkctl status --no-pager $(ls -d /sys/class/net/*/device | cut -d/ -f5)
ip link delete gi-veth0
section default; cat /etc/systemd/network/90-default.network
section services
for unit in systemd-networkd.service systemd-resolved.service; do
    echo "$unit=$(systemctl is-enabled "$unit" 2>/dev/null) $(systemctl is-active "$unit" 2>/dev/null)"
done
section resolved; resolvectl llmnr --no-pager; resolvectl mdns --no-pager
section resolv_conf; readlink /etc/resolv.conf
section wait_online; systemctl show --property=ExecStart systemd-networkd-wait-online.service
section routes; ip -json route show default
section ifupdown; ls /sbin/ifup /etc/network/interfaces 2>/dev/null
section log; journalctl --no-pager --boot --unit systemd-networkd --unit systemd-resolved --priority warning \
    --grep 'Unknown|Failed to parse|Invalid'
"""


@pytest.fixture(scope="module")
def network(host: Host) -> dict[str, str]:
    """What the machine says of its network."""
    return gather(host, GATHER)


@pytest.mark.reboot
def test_networkd_and_resolved_run(network: dict[str, str]) -> None:
    assert set(properties(network["services"]).values()) == {"enabled active"}


@pytest.mark.reboot
def test_a_physical_interface_is_configured(network: dict[str, str]) -> None:
    states = [line.split()[2:5] for line in network["links"].splitlines()]
    assert ["ether", "routable", "configured"] in states, network["links"]


def test_the_default_takes_interfaces_by_type(network: dict[str, str]) -> None:
    lines = [line for line in network["default"].splitlines() if not line.startswith("#")]
    assert {"Type=ether", "Kind=!*", "DHCP=yes"} <= set(lines)
    assert not [line for line in lines if line.startswith(("Name=", "MACAddress=", "PermanentMACAddress="))]


def test_interfaces_of_pods_are_left_alone(network: dict[str, str]) -> None:
    assert "(unmanaged)" in network["veth"], network["veth"]
    assert "90-default.network" not in network["veth"]
    assert ".network" in network["physical"], network["physical"]


def test_a_second_interface_can_win(network: dict[str, str]) -> None:
    fields = properties("\n".join(line for line in network["default"].splitlines() if line.startswith("RouteMetric")))
    assert int(fields["RouteMetric"]) > 1024, "not higher than networkd's own metric"
    assert json.loads(network["routes"]), "there is no default route"


def test_no_neighbour_answers_for_names(network: dict[str, str]) -> None:
    # The links' own settings do not matter where the global one is off.
    states = [line.split(":")[1].strip() for line in network["resolved"].splitlines() if line.startswith("Global")]
    assert states == ["no", "no"], network["resolved"]
    assert network["resolv_conf"].endswith("run/systemd/resolve/stub-resolv.conf")


def test_the_boot_waits_for_one_interface(network: dict[str, str]) -> None:
    assert "--any" in network["wait_online"]


def test_nothing_else_manages_the_network(network: dict[str, str]) -> None:
    assert "/sbin/ifup" not in network["ifupdown"]


def test_this_release_knows_every_setting(network: dict[str, str]) -> None:
    found = [line for line in network["log"].splitlines() if not line.startswith("-- ")]
    assert not found
