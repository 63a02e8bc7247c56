# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of every image: the release, its packages, the network and time services, a disk used to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from gather import gather, properties

if TYPE_CHECKING:
    from testinfra.host import Host

PACKAGES = ("vim", "htop", "tmux", "net-tools", "curl", "jq", "ca-certificates", "openssh-server", "sudo")
SERVICES = ("systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service", "ssh.service")
# Kernel that each release comes with, at least.
KERNELS = {"bookworm": (6, 1), "trixie": (6, 12), "jammy": (5, 15), "noble": (6, 8)}

GATHER = r"""
section release; . /etc/os-release; echo "$VERSION_CODENAME"
section kernel; uname -r
section packages; dpkg-query --show --showformat='${db:Status-Status} ${Package}\n' $1 ifupdown 2>/dev/null
section unfinished; dpkg --audit
section services
for unit in $2; do
    echo "$unit $(systemctl is-enabled "$unit" 2>/dev/null) $(systemctl is-active "$unit" 2>/dev/null)"
done
section state; systemctl is-system-running
section failed; systemctl list-units --failed --plain --no-legend --no-pager
section links; networkctl list --no-pager --no-legend
section dns; resolvectl dns --no-pager
section resolv_conf; readlink /etc/resolv.conf
section lookup; getent hosts "$(hostname)" || echo "no answer"
section network_managers; ls /etc/network/interfaces /sbin/ifup /usr/sbin/NetworkManager 2>/dev/null
section apt; apt-config dump DPkg::Lock::Timeout; apt-config dump APT::Install-Recommends
section disk
source=$(findmnt --noheadings --output SOURCE /)
part=$(basename "$source")
echo "disk=$(cat "$(readlink -f "/sys/class/block/$part/..")/size")"
echo "start=$(cat "/sys/class/block/$part/start")"
echo "size=$(cat "/sys/class/block/$part/size")"
echo "filesystem=$(($(stat --file-system --format='%b * %S' /) / 512))"
"""


@pytest.fixture(scope="module")
def base(host: Host) -> dict[str, str]:
    """What the machine says of itself."""
    return gather(host, GATHER, " ".join(PACKAGES), " ".join(SERVICES))


@pytest.fixture(scope="module")
def release(expect: dict[str, Any]) -> str:
    return str(expect.get("distribution_release") or "trixie")


def test_release_is_the_one_asked_for(base: dict[str, str], release: str) -> None:
    assert base["release"] == release


def test_kernel_is_recent_enough(base: dict[str, str], release: str) -> None:
    version = tuple(int(part) for part in base["kernel"].split("-")[0].split(".")[:2])
    assert version >= KERNELS[release], base["kernel"]


def test_packages_are_installed(base: dict[str, str]) -> None:
    installed = {line.split()[1] for line in base["packages"].splitlines() if line.startswith("installed ")}
    assert set(PACKAGES) - installed == set()


def test_no_package_is_half_installed(base: dict[str, str]) -> None:
    assert base["unfinished"] == ""


@pytest.mark.reboot
@pytest.mark.parametrize("unit", SERVICES)
def test_services_are_enabled_and_run(base: dict[str, str], unit: str) -> None:
    states = {name: state for name, *state in map(str.split, base["services"].splitlines())}
    assert states.get(unit) == ["enabled", "active"]


@pytest.mark.reboot
def test_boot_is_not_degraded(base: dict[str, str]) -> None:
    assert base["failed"] == ""
    assert base["state"] == "running"


@pytest.mark.reboot
def test_networkd_has_configured_an_interface(base: dict[str, str]) -> None:
    states = [line.split()[2:5] for line in base["links"].splitlines()]
    assert ["ether", "routable", "configured"] in states, base["links"]


@pytest.mark.reboot
def test_resolved_has_name_servers(base: dict[str, str]) -> None:
    servers = [server for line in base["dns"].splitlines() for server in line.partition(":")[2].split()]
    assert servers, base["dns"]
    assert base["resolv_conf"] in (
        "../run/systemd/resolve/stub-resolv.conf",
        "/run/systemd/resolve/stub-resolv.conf",
    )


@pytest.mark.reboot
def test_own_name_resolves(base: dict[str, str]) -> None:
    assert base["lookup"] != "no answer"


def test_nothing_else_manages_the_network(base: dict[str, str], expect: dict[str, Any]) -> None:
    assert "installed ifupdown" not in base["packages"].splitlines()
    assert "/sbin/ifup" not in base["network_managers"].splitlines()
    if not expect.get("network_manager"):
        assert "/usr/sbin/NetworkManager" not in base["network_managers"].splitlines()


def test_apt_waits_for_its_locks(base: dict[str, str]) -> None:
    assert 'DPkg::Lock::Timeout "300";' in base["apt"]


def test_root_has_grown_to_the_end_of_the_disk(base: dict[str, str]) -> None:
    sectors = {name: int(value) for name, value in properties(base["disk"]).items()}
    left = sectors["disk"] - sectors["start"] - sectors["size"]
    assert left < 8 * 2048, f"{left // 2048} MiB behind the root partition are unused"
    assert sectors["filesystem"] > 0.9 * sectors["size"], "the file system is smaller than its partition"
