# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing of the build machine is left.

Written from what images have been found to leak, not from the rules of the clean-up: the two know nothing of each
other. On a finished image (the default) this runs during the first boot, and everything that belongs to this boot is
younger than it. On a machine that has only been cleaned and runs on (`"hygiene": "machine"` in the expectations) things
are simply gone.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from gather import gather

if TYPE_CHECKING:
    from testinfra.host import Host

ACCOUNT_FILES = ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")

# Times are those of the last change of the inode: nothing sets them but the kernel, so a file that this boot has not
# touched is as old as the build.
GATHER = r"""
build_user=$1
canaries=$2
boot=$(awk '$1 == "btime" { print $2 }' /proc/stat)
# The directories themselves, and what packages bring, may be old; what is in them may not.
old() { find "$@" -xdev ! -type d ! -newerct "@$((boot - 5))" 2>/dev/null; }

section machine_id; cat /etc/machine-id
section dbus_machine_id; [ -e /var/lib/dbus/machine-id ] && readlink -f /var/lib/dbus/machine-id
section host_keys; ls /etc/ssh/ssh_host_* 2>/dev/null
section host_keys_old; old /etc/ssh/ssh_host_*
section host_keys_unit; systemctl is-enabled goldsmith-host-keys.service
section seeds; old /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
section seeds_all; ls /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /boot/efi/loader/random-seed \
    2>/dev/null
section hostname; cat /etc/hostname
section hosts; grep -v '^[[:space:]]*#' /etc/hosts
section cloud_init; find /var/lib/cloud -xdev ! -type d 2>/dev/null
section cloud_init_old; old /var/lib/cloud
section cloud_init_instances; ls /var/lib/cloud/instances 2>/dev/null
section network_old; old /etc/systemd/network /etc/netplan /etc/network/interfaces.d | grep -v '/90-default.network$'
section leases_old; old /var/lib/dhcp /var/lib/dhcpcd /var/lib/NetworkManager /var/lib/systemd/network
section udev; ls /etc/udev/rules.d/*persistent-net* 2>/dev/null
section resolv_conf; readlink /etc/resolv.conf
section logs_old; old /var/log | grep -v '^/var/log/README$'
section journals; ls /var/log/journal 2>/dev/null
section rotated; find /var/log -name '*.gz' -o -name '*.[0-9]' -o -name '*.xz' 2>/dev/null
section records_old; old /var/lib/systemd/timers /var/lib/systemd/timesync /var/lib/private/systemd/timesync \
    /var/lib/systemd/coredump /var/lib/systemd/pstore /var/lib/systemd/linger /var/crash /var/lib/lastlog \
    /var/lib/wtmpdb
section apt_lists_old; old /var/lib/apt/lists
section apt_lists; find /var/lib/apt/lists -type f ! -name lock
section apt_archives; ls /var/cache/apt/archives/*.deb 2>/dev/null
section temporary_old; old /tmp /var/tmp
section root_old; old /root | grep -vE '^/root/\.(bashrc|profile)$'
section root; find /root -xdev ! -type d
section homes_old; old /home
section homes; ls /home
section caches; find /root /home -xdev -name '.ansible*' -o -xdev -name '*_history' -o -xdev -name '.viminfo' -o \
    -xdev -name known_hosts 2>/dev/null
section authorized_keys_old; old /root/.ssh /home/*/.ssh
section sudoers_old; old /etc/sudoers.d | grep -vE '/(README|goldsmith-umask|50-sudonp)$'
section build_user; grep -lE "^$build_user[: ]" /etc/passwd /etc/shadow /etc/group /etc/gshadow /etc/subuid \
    /etc/subgid /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid- 2>/dev/null
grep -rlw "$build_user" /etc/sudoers /etc/sudoers.d 2>/dev/null
ls -d "/home/$build_user" "/var/mail/$build_user" 2>/dev/null
section account_backups_old; for name in $3; do old "/etc/$name-"; done
section users; awk -F: '$3 >= 1000 && $3 < 60000 { print $1 }' /etc/passwd
section passwords; awk -F: '$2 !~ /^[!*]/ { print $1 }' /etc/shadow
section credentials; ls -d /root/.netrc /home/*/.netrc /root/.aws /home/*/.aws /root/.docker /home/*/.docker \
    /root/.kube /home/*/.kube /root/.git-credentials /etc/apt/auth.conf /etc/apt/auth.conf.d/* 2>/dev/null
section private_keys; grep -rlE -e '-----BEGIN ([A-Z]+ )?PRIVATE KEY-----' /root /home /etc /var/lib 2>/dev/null |
    grep -vE '^/etc/ssh/ssh_host_'
section build_switches; ls /etc/apt/apt.conf.d/99goldsmith-build /etc/apt/apt.conf.d/99mmdebstrap \
    /usr/sbin/policy-rc.d 2>/dev/null
section proxies; grep -rliE '^[^#/]*proxy' /etc/apt/apt.conf.d /etc/environment \
    /etc/systemd/system/containerd.service.d 2>/dev/null
section cores
find / -xdev -path /usr -prune -o -type f \( -name core -o -name 'core.[0-9]*' \) -size +0 -print 2>/dev/null
section containers; ls /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes /var/lib/kubelet/pods /var/lib/etcd \
    2>/dev/null | grep -v ':$' | grep .
section canary
if [ -n "$canaries" ]; then
    printf '%s' "$canaries" | base64 --decode >/run/goldsmith-canaries
    grep -rlF -f /run/goldsmith-canaries /etc /root /home /var /opt /usr/local /srv /boot 2>/dev/null
    rm -f /run/goldsmith-canaries
fi
"""

# Changed since this boot began: a link that was made, or a folder from which one was taken.
UNITS = r"""
boot=$(awk '$1 == "btime" { print $2 }' /proc/stat)
section young; find /etc/systemd/system -xdev -newerct "@$((boot - 5))" 2>/dev/null
"""


@pytest.fixture(scope="module")
def traces(host: Host, expect: dict[str, Any]) -> dict[str, str]:
    """What could be left of the build."""
    canary = expect.get("canary") or []
    canaries = [canary] if isinstance(canary, str) else canary
    return gather(
        host,
        GATHER,
        str(expect.get("build_user", "packer")),
        # sudo writes the command line to the journal, where it must not be found.
        base64.b64encode("".join(f"{line}\n" for line in canaries).encode()).decode(),
        " ".join(ACCOUNT_FILES),
    )


@pytest.fixture(scope="module")
def first_boot(expect: dict[str, Any]) -> bool:
    """Whether this is the first boot of an image, and not the machine that was cleaned."""
    return expect.get("hygiene", "image") == "image"


def _only_on_a_first_boot(first_boot: bool) -> None:
    if not first_boot:
        pytest.skip("only on the first boot of an image")


def test_machine_id_is_not_the_one_of_the_build(traces: dict[str, str], first_boot: bool) -> None:
    if first_boot:
        # A journal directory is named after each machine-id that the disk has ever had.
        assert len(traces["machine_id"]) == 32
        assert set(traces["journals"].split()) <= {traces["machine_id"]}
    else:
        assert traces["machine_id"] in ("", "uninitialized")
    assert traces["dbus_machine_id"] in ("", "/etc/machine-id")


def test_host_keys_are_made_by_each_machine(traces: dict[str, str], first_boot: bool) -> None:
    if first_boot:
        assert traces["host_keys"], "there are no host keys at all"
        assert traces["host_keys_old"] == ""
    else:
        assert traces["host_keys"] == ""
    assert traces["host_keys_unit"] == "enabled"


def test_no_random_seed_is_shared(traces: dict[str, str], first_boot: bool) -> None:
    assert traces["seeds" if first_boot else "seeds_all"] == ""


def test_cloud_init_starts_afresh(traces: dict[str, str], first_boot: bool) -> None:
    if first_boot:
        assert traces["cloud_init_old"] == ""
        assert len(traces["cloud_init_instances"].split()) == 1
    else:
        assert traces["cloud_init"] == ""


def test_network_of_the_build_is_forgotten(traces: dict[str, str], first_boot: bool) -> None:
    assert traces["leases_old"] == ""
    assert traces["udev"] == ""
    assert traces["resolv_conf"].endswith("run/systemd/resolve/stub-resolv.conf")
    if first_boot:
        assert traces["network_old"] == ""


def test_name_of_the_build_is_forgotten(traces: dict[str, str], first_boot: bool, expect: dict[str, Any]) -> None:
    build_name = expect.get("build_hostname")
    if build_name:
        assert build_name not in traces["hostname"].split() + traces["hosts"].split()
    if not first_boot:
        assert traces["hostname"] in ("localhost", "debian", "")
        assert "127.0.1.1" not in traces["hosts"]


def test_no_logs_of_the_build(traces: dict[str, str], first_boot: bool) -> None:
    _only_on_a_first_boot(first_boot)
    assert traces["logs_old"] == ""


def test_no_rotated_logs(traces: dict[str, str]) -> None:
    assert traces["rotated"] == ""


def test_no_records_of_the_build(traces: dict[str, str], first_boot: bool) -> None:
    _only_on_a_first_boot(first_boot)
    assert traces["records_old"] == ""


def test_no_package_lists_nor_archives(traces: dict[str, str], first_boot: bool) -> None:
    assert traces["apt_lists_old" if first_boot else "apt_lists"] == ""
    assert traces["apt_archives"] == ""


def test_no_temporary_files_of_the_build(traces: dict[str, str], first_boot: bool) -> None:
    _only_on_a_first_boot(first_boot)
    assert traces["temporary_old"] == ""


def test_homes_hold_nothing_of_the_build(traces: dict[str, str], first_boot: bool, expect: dict[str, Any]) -> None:
    if first_boot:
        kept = set(expect.get("home_files", []))
        assert set(traces["root_old"].splitlines() + traces["homes_old"].splitlines()) - kept == set()
    # What Ansible leaves behind when it connects again belongs to this connection, on a machine that runs on.
    left = [line for line in traces["caches"].splitlines() if first_boot or "/.ansible" not in line]
    assert left == []


def test_no_key_of_the_build_opens_the_machine(traces: dict[str, str], first_boot: bool) -> None:
    _only_on_a_first_boot(first_boot)
    assert traces["authorized_keys_old"] == ""
    assert traces["sudoers_old"] == ""


def test_build_user_is_gone(traces: dict[str, str], first_boot: bool) -> None:
    _only_on_a_first_boot(first_boot)
    assert traces["build_user"] == ""
    assert traces["account_backups_old"] == ""


def test_no_user_has_a_password(traces: dict[str, str], expect: dict[str, Any]) -> None:
    assert set(traces["passwords"].split()) - set(expect.get("users_with_password", [])) == set()


def test_no_credentials(traces: dict[str, str]) -> None:
    assert traces["credentials"] == ""
    assert traces["private_keys"] == ""


def test_switches_of_the_build_are_off(traces: dict[str, str]) -> None:
    assert traces["build_switches"] == ""
    assert traces["proxies"] == ""


def test_no_core_dumps_nor_containers(traces: dict[str, str]) -> None:
    assert traces["cores"] == ""
    assert traces["containers"] == ""


def test_secrets_of_the_build_are_nowhere(traces: dict[str, str], expect: dict[str, Any]) -> None:
    if not expect.get("canary"):
        pytest.skip("no secret was planted in this build")
    assert traces["canary"] == ""


@pytest.mark.reboot
def test_no_boot_changes_which_units_are_enabled(host: Host, first_boot: bool, expect: dict[str, Any]) -> None:
    """Presets of a first boot, or a tool of it, make links; so does nothing else while a machine boots."""
    _only_on_a_first_boot(first_boot)
    kept = set(expect.get("units_made_at_boot", []))
    assert set(gather(host, UNITS)["young"].splitlines()) - kept == set()


@pytest.mark.reboot
def test_units_that_the_build_disabled_are_still_disabled(host: Host, expect: dict[str, Any]) -> None:
    units = expect.get("disabled_units", [])
    if not units:
        pytest.skip("the image definition names none")
    states = host.run("systemctl is-enabled " + " ".join(["%s"] * len(units)), *units).stdout.split()
    assert set(states) <= {"disabled", "masked"}, dict(zip(units, states, strict=False))
