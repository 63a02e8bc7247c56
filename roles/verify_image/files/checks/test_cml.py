# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine can be a CML host, its network survives being a copy, and nothing in it is secret or only a mock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from gather import gather, properties

if TYPE_CHECKING:
    from testinfra.host import Host

# A profile as CML's set-up leaves it on the machine that it ran on.
FOREIGN = r"""[connection]
id=goldsmith0
uuid=5d0f8a22-7e64-4190-ab3c-552d7a10439e
type=bridge
interface-name=bridge99
autoconnect=false

[bridge]
mac-address=0A:FF:00:00:00:01

[ipv4]
dhcp-client-id=01:0a:ff:00:00:00:01
method=disabled

[ipv6]
method=disabled
"""

GATHER = r"""
profile=/etc/NetworkManager/system-connections/bridge99.nmconnection
section packages; dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' bridge-utils cpu-checker jq \
    libvirt-daemon-system network-manager ovmf qemu-system-x86 nginx-light nginx-common 2>/dev/null
section units
for unit in NetworkManager cml-network-unpin serial-getty@ttyS0 cml-install cml-mock-gui; do
    echo "$unit=$(systemctl is-enabled "$unit.service" 2>/dev/null)"
done
section active; systemctl is-active NetworkManager.service serial-getty@ttyS0.service
section console
getty() { systemctl show --property=MainPID --value serial-getty@ttyS0.service; }
before=$(getty)
port=$(ls /sys/bus/pnp/drivers/serial | grep : | head -n 1)
for what in unbind bind; do echo "$port" >"/sys/bus/pnp/drivers/serial/$what"; udevadm settle; done
for try in $(seq 30); do case $(getty) in 0 | "$before") sleep 1 ;; *) break ;; esac; done
echo "$before $(getty)"
section libvirt; virsh --connect qemu:///system version 2>&1
section domain; virsh --connect qemu:///system domcapabilities --virttype qemu 2>&1 | grep -c "<domain>qemu</domain>"
section nested; modprobe --showconfig | grep '^options kvm_'
section modules; grep -hE '^(tun|vhost_net) ' /proc/modules
section kvm_ok; command -v kvm-ok
section provision; stat --format='%a %U' /provision; ls -A /provision
section link; cat /etc/systemd/network/10-cml-primary.link 2>/dev/null
section devices; nmcli --terse --fields DEVICE,STATE device
section unpin
if command -v nmcli >/dev/null; then
    (umask 077; printf '%s' "$1" >"$profile")
    systemctl restart cml-network-unpin.service
    cat "$profile"
    stat --format='mode=%a' "$profile"
fi
section bridge
if command -v nmcli >/dev/null; then
    nmcli connection load "$profile"
    nmcli --wait 60 connection up goldsmith0
    cat /sys/class/net/bridge99/mtu
    nmcli connection delete goldsmith0
    rm -f "$profile"
fi
section listening; ss --tcp --listening --numeric --no-header | awk '{print $4}'
section tokens
grep -rlsE '[A-Za-z0-9+/]{60,}(%3D){0,2}%0A' /provision /etc /root /home /var/lib/cloud /var/log /usr/local
find /provision /etc /root /home /var/lib/cloud /usr/local -xdev -iname '*licen[sc]e*token*'
"""


@pytest.fixture(scope="module")
def cml(host: Host) -> dict[str, str]:
    """What the machine says of itself as a CML host."""
    return gather(host, GATHER, FOREIGN)


def test_packages_are_installed(cml: dict[str, str]) -> None:
    installed = {line.split()[1] for line in cml["packages"].splitlines() if line.startswith("installed ")}
    wanted = {
        "bridge-utils",
        "cpu-checker",
        "jq",
        "libvirt-daemon-system",
        "network-manager",
        "ovmf",
        "qemu-system-x86",
    }
    assert wanted - installed == set()
    assert cml["kvm_ok"].endswith("/kvm-ok")


@pytest.mark.reboot
def test_services_are_enabled_and_run(cml: dict[str, str]) -> None:
    units = properties(cml["units"])
    assert [units[name] for name in ("NetworkManager", "cml-network-unpin", "serial-getty@ttyS0")] == ["enabled"] * 3
    assert cml["active"].split() == ["active", "active"]


def test_login_on_the_serial_console_comes_back_with_its_device(cml: dict[str, str]) -> None:
    before, after = cml["console"].split()
    assert "0" not in (before, after)
    assert before != after


@pytest.mark.reboot
def test_libvirt_answers_and_can_run_qemu(cml: dict[str, str]) -> None:
    assert "Running hypervisor: QEMU" in cml["libvirt"], cml["libvirt"]
    assert cml["domain"] == "1"


def test_guests_may_be_hypervisors(cml: dict[str, str]) -> None:
    assert {"options kvm_intel nested=1", "options kvm_amd nested=1"} <= set(cml["nested"].splitlines())


@pytest.mark.reboot
def test_network_modules_of_guests_are_loaded(cml: dict[str, str]) -> None:
    assert {line.split()[0] for line in cml["modules"].splitlines()} == {"tun", "vhost_net"}


def test_provision_is_for_root_and_the_installer_has_what_it_needs(cml: dict[str, str]) -> None:
    first, *files = cml["provision"].splitlines()
    assert first == "700 root"
    if properties(cml["units"])["cml-install"] == "enabled":
        assert "SHA256SUMS" in files and len(files) == 2
    else:
        assert files == []


@pytest.mark.reboot
def test_network_manager_leaves_the_uplink_to_whoever_has_it(cml: dict[str, str]) -> None:
    states = dict(line.rsplit(":", 1) for line in cml["devices"].splitlines())
    assert states
    assert not [name for name, state in states.items() if state in ("connecting", "disconnected")], states


def test_pins_of_another_machine_are_removed_before_they_cut_the_network(cml: dict[str, str]) -> None:
    assert "interface-name=bridge99" in cml["unpin"]
    assert "mode=600" in cml["unpin"]
    assert "mac-address" not in cml["unpin"]
    assert "dhcp-client-id" not in cml["unpin"]


def test_bridges_have_the_mtu_of_their_ports(cml: dict[str, str], expect: dict[str, Any]) -> None:
    assert str(expect.get("cml_mtu", 1500)) in cml["bridge"].splitlines(), cml["bridge"]


def test_the_interface_gets_the_name_that_was_asked_for(cml: dict[str, str], expect: dict[str, Any]) -> None:
    name = expect.get("cml_primary_interface")
    assert cml["link"] == (f"[Match]\nDriver=ena virtio_net\n\n[Link]\nName={name}" if name else "")


def test_no_licence_token_is_in_the_image(cml: dict[str, str]) -> None:
    assert cml["tokens"] == ""


def test_the_mock_is_gone_unless_it_was_asked_for(cml: dict[str, str], expect: dict[str, Any]) -> None:
    listening = {address.rpartition(":")[2] for address in cml["listening"].splitlines()}
    if expect.get("cml_mock_gui"):
        assert properties(cml["units"])["cml-mock-gui"] == "enabled"
        assert {"80", "443"} <= listening
    else:
        assert properties(cml["units"])["cml-mock-gui"] in ("", "not-found")
        assert "installed nginx-light" not in cml["packages"].splitlines()
        assert not {"80", "443"} & listening
