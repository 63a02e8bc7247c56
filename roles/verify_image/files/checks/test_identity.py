# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two machines started from one image at the same time must not be taken for one another.

Both have the same network card address, so an identity that differs here does so because the image carries none.
"""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from cloud_init import STATUS, complaints

# One script a machine: a command in an emulated guest is slow, the questions are many.
GATHER = r"""
set -u
section() { printf '\n@@ %s\n' "$1"; }
section machine_id; cat /etc/machine-id
section dbus_machine_id; cat /var/lib/dbus/machine-id 2>/dev/null
section boot_id; cat /proc/sys/kernel/random/boot_id
section hostname; cat /proc/sys/kernel/hostname
section host_keys; for key in /etc/ssh/ssh_host_*_key.pub; do cut -d' ' -f1,2 "$key"; done
section host_key_modes; stat -c '%a %U %n' /etc/ssh/ssh_host_*_key
section random_seed; sha256sum < /var/lib/systemd/random-seed
section random_seed_mode; stat -c '%a %U' /var/lib/systemd/random-seed
section mac; cat /sys/class/net/e*/address
section network; networkctl status --all --no-pager --json=short
section dhclient; grep -hs 'default-duid' /var/lib/dhcp/*.leases
section dhcpcd; cat /var/lib/dhcpcd/duid /etc/dhcpcd.duid 2>/dev/null
section instance_id; cat /var/lib/cloud/data/instance-id
section cloud_init; @STATUS@
section iscsi; grep -hs '^InitiatorName=' /etc/iscsi/initiatorname.iscsi
section nvme; cat /etc/nvme/hostid /etc/nvme/hostnqn 2>/dev/null
section journal; ls /var/log/journal 2>/dev/null
section end
"""


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^@@ (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.fixture(scope="module")
def identities(clones: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """What each machine says of itself."""
    running = {
        name: subprocess.Popen(
            [*ssh, "sudo", "-n", "sh", "-s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, ssh in clones.items()
    }
    for process in running.values():
        assert process.stdin is not None
        process.stdin.write(GATHER.replace("@STATUS@", STATUS))
        process.stdin.close()
        process.stdin = None
    found = {}
    for name, process in running.items():
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        found[name] = _sections(out)
        assert "end" in found[name], f"{name} did not answer: exit code {process.returncode}, {err.strip()[-500:]}"
    return found


@pytest.fixture(scope="module")
def machines(identities: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    return list(identities.values())


def _one_of(machines: list[dict[str, str]], name: str) -> list[str]:
    return [machine[name] for machine in machines]


def _assert_distinct(values: list[str], what: str) -> None:
    assert all(values), f"{what} is missing: {values}"
    assert len(set(values)) == len(values), f"clones share their {what}: {values}"


def test_machine_id_differs(machines: list[dict[str, str]]) -> None:
    found = _one_of(machines, "machine_id")
    _assert_distinct(found, "machine-id")
    malformed = [value for value in found if not re.fullmatch(r"[0-9a-f]{32}", value)]
    assert not malformed, f"not a machine-id: {malformed}"


def test_dbus_machine_id_is_the_same_as_the_systems(machines: list[dict[str, str]]) -> None:
    # A second, real copy is a classic way for clones to share an identity although /etc/machine-id is right.
    wrong = [m for m in machines if m["dbus_machine_id"] not in ("", m["machine_id"])]
    assert not wrong, [(m["machine_id"], m["dbus_machine_id"]) for m in wrong]


def test_host_keys_differ(machines: list[dict[str, str]]) -> None:
    keys = [set(machine["host_keys"].splitlines()) for machine in machines]
    assert all(keys), "a machine has no SSH host keys"
    shared = set.intersection(*keys)
    assert not shared, f"clones share SSH host keys: {sorted(key[:40] for key in shared)}"


def test_host_keys_have_the_strong_types(machines: list[dict[str, str]]) -> None:
    for machine in machines:
        types = {line.split()[0] for line in machine["host_keys"].splitlines()}
        assert "ssh-ed25519" in types, types
        assert "ssh-dss" not in types, types


def test_host_keys_are_private(machines: list[dict[str, str]]) -> None:
    for machine in machines:
        wrong = [line for line in machine["host_key_modes"].splitlines() if not line.startswith("600 root ")]
        assert not wrong, wrong


def test_hostname_is_the_seeds(identities: dict[str, dict[str, str]]) -> None:
    found = {name: machine["hostname"] for name, machine in identities.items()}
    _assert_distinct(list(found.values()), "hostname")
    assert all(hostname == name for name, hostname in found.items()), f"hostname not taken from the seed: {found}"


def test_dhcp_client_id_differs(machines: list[dict[str, str]]) -> None:
    # Read from networkd where it runs; the other clients keep theirs in files.
    found = [_client_ids(machine) for machine in machines]
    assert all(found), f"no DHCP client id found: {found}"
    shared = set.intersection(*found)
    macs = {mac for machine in machines for mac in machine["mac"].split()}
    if shared and all(_is_mac(value, macs) for value in shared):
        pytest.fail(
            "the DHCP client id is the network card's address: set by the image's network configuration, "
            "and the same for clones that keep the address"
        )
    assert not shared, f"clones share their DHCP client id: {sorted(shared)}"


def _client_ids(machine: dict[str, str]) -> set[str]:
    found = set(re.findall(r"default-duid (.+);", machine["dhclient"]))
    found.update(machine["dhcpcd"].split("\n") if machine["dhcpcd"] else [])
    try:
        interfaces = json.loads(machine["network"]).get("Interfaces", [])
    except json.JSONDecodeError:
        interfaces = []
    for interface in interfaces:
        client = interface.get("DHCPv4Client") or {}
        identifier = client.get("ClientIdentifier")
        if identifier:
            found.add(bytes(identifier).hex() if isinstance(identifier, list) else str(identifier))
    return found


def _is_mac(client_id: str, macs: set[str]) -> bool:
    plain = {mac.replace(":", "") for mac in macs}
    return client_id.removeprefix("01") in plain


def test_random_seed_differs(machines: list[dict[str, str]]) -> None:
    _assert_distinct(_one_of(machines, "random_seed"), "random seed")


def test_random_seed_is_private(machines: list[dict[str, str]]) -> None:
    assert set(_one_of(machines, "random_seed_mode")) == {"600 root"}


def test_boot_id_differs(machines: list[dict[str, str]]) -> None:
    _assert_distinct(_one_of(machines, "boot_id"), "boot id")


def test_cloud_init_took_the_new_instance(machines: list[dict[str, str]]) -> None:
    _assert_distinct(_one_of(machines, "instance_id"), "cloud-init instance id")


def test_cloud_init_ended_without_errors_on_every_clone(identities: dict[str, dict[str, str]]) -> None:
    for name, machine in identities.items():
        assert complaints(machine["cloud_init"]) == [], name


@pytest.mark.parametrize("name", ["iscsi", "nvme"])
def test_storage_identity_is_not_shared(machines: list[dict[str, str]], name: str) -> None:
    found = _one_of(machines, name)
    if not any(found):
        pytest.skip(f"no {name} identity in the image")
    _assert_distinct(found, f"{name} identity")


def test_journal_of_no_other_machine(machines: list[dict[str, str]]) -> None:
    for machine in machines:
        foreign = [name for name in machine["journal"].split() if not name.startswith(machine["machine_id"])]
        assert not foreign, f"journal of another machine: {foreign}"
