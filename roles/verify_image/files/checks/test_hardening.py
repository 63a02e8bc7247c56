# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hardening promises, as the running programs see it: effective values, not files."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from gather import gather, properties

if TYPE_CHECKING:
    from testinfra.host import Host

SSHD = {
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "pubkeyauthentication": "yes",
    "permitemptypasswords": "no",
    "permitrootlogin": "without-password",
    "x11forwarding": "no",
    "allowagentforwarding": "no",
    "hostbasedauthentication": "no",
    "permituserenvironment": "no",
}
SYSCTLS = {
    "kernel.dmesg_restrict": "1",
    "kernel.kexec_load_disabled": "1",
    "kernel.kptr_restrict": "2",
    "kernel.sysrq": "0",
    "kernel.unprivileged_bpf_disabled": "1",
    "kernel.yama.ptrace_scope": "1",
    "fs.protected_regular": "2",
    "fs.suid_dumpable": "0",
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.all.accept_source_route": "0",
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv6.conf.all.accept_redirects": "0",
    "vm.unprivileged_userfaultfd": "0",
}
BLOCKED = ("cramfs", "hfsplus", "dccp", "rds", "tipc", "usb-storage")
NEVER_BLOCKED = ("overlay", "br_netfilter", "vfat", "isofs", "udf")
PORTS = {
    "kubernetes_node": ("tcp dport 6443", "tcp dport 10250", "th dport 30000-32767", "udp dport 8472"),
    "cml_host": (
        *(f"tcp dport {port} accept" for port in (22, 80, 443, 1122, 9090)),
        "meta l4proto { tcp, udp } th dport 2000-7999 accept",
    ),
}
OPERATORS_ONLY = ("kubernetes_node", "strict")
MOUNTS = {"/dev/shm": {"nosuid", "nodev", "noexec"}, "/tmp": {"nosuid", "nodev"}}

GATHER = r"""
section sshd_test; sshd -t 2>&1 && echo valid
section sshd; sshd -T -C user=debian,host=client.example,addr=192.0.2.1
section sshd_root; sshd -T -C user=root,host=client.example,addr=192.0.2.1
section sshd_unit; systemctl show --property=ActiveState,NRestarts ssh.service
# As if a later user-data asked for passwords: its file must not win.
section sshd_later
copy=$(mktemp -d)
cp -r /etc/ssh/. "$copy"
echo 'PasswordAuthentication yes' >"$copy/sshd_config.d/50-cloud-init.conf"
sed -i "s|/etc/ssh/sshd_config.d|$copy/sshd_config.d|" "$copy/sshd_config"
sshd -T -f "$copy/sshd_config" -C user=debian,host=client.example,addr=192.0.2.1 | grep -i '^passwordauthentication'
rm -rf "$copy"
section sysctl; for name in $1; do echo "$name=$(sysctl -n "$name")"; done
section forwarding; cat /proc/sys/net/ipv4/ip_forward
section modules; for name in $2; do echo "$name=$(modprobe --dry-run --verbose "$name" 2>&1 | tail -1)"; done
section apt; apt-config dump APT::Periodic; apt-config dump Unattended-Upgrade
section upgrades; systemctl is-enabled apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service
section umask; su --login --command umask nobody --shell /bin/sh 2>/dev/null
section sudo_umask; sudo sh -c umask
section core; su nobody --shell /bin/sh --command 'ulimit -H -c'
section report; cat /etc/image-hardening.json
section files; ls /etc/sysctl.d
section firewall; nft list table inet goldsmith
section firewall_unit; systemctl show --property=ActiveState,UnitFileState goldsmith-firewall.service
section fail2ban_test; fail2ban-client -t
section fail2ban_unit; systemctl show --property=ActiveState,UnitFileState fail2ban.service
section jails; for try in $(seq 60); do fail2ban-client status && break; sleep 1; done
section audit; auditctl -l
section audit_unit; systemctl show --property=ActiveState,UnitFileState auditd.service
section apparmor; cat /sys/module/apparmor/parameters/enabled; grep -c . /sys/kernel/security/apparmor/profiles
section mounts; for path in /dev/shm /tmp /dev /proc; do findmnt --noheadings --output TARGET,OPTIONS "$path"; done
section timeout; sh -c '. /etc/profile; . /etc/profile; echo "$TMOUT"'
section usb; systemctl show --property=ActiveState,UnitFileState usbguard.service; echo "bus=$(ls -d /sys/bus/usb)"
section modes; stat --format='%n=%a' /root /etc/crontab /etc/cron.d /etc/ssh/sshd_config /etc/sudoers.d 2>/dev/null
"""


@pytest.fixture(scope="module")
def hardened(host: Host) -> dict[str, str]:
    """What the machine says of itself."""
    return gather(host, GATHER, " ".join(SYSCTLS), " ".join((*BLOCKED, *NEVER_BLOCKED)))


@pytest.fixture(scope="module")
def report(hardened: dict[str, str]) -> dict[str, Any]:
    """What the role wrote down: the profile, and what it left out."""
    found = json.loads(hardened["report"])
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def waived(report: dict[str, Any]) -> set[str]:
    """Identifiers of what was left out on purpose."""
    return {entry["id"] for entry in [*report["waived"], *report["skipped"]]}


def test_the_report_says_what_was_left_out_and_why(report: dict[str, Any], expect: dict[str, Any]) -> None:
    assert report["profile"] == (expect.get("hardening_profile") or report["profile"])
    assert report["conflicts"] == expect.get("hardening_conflicts", [])
    assert [entry for entry in [*report["waived"], *report["skipped"]] if not entry["reason"].strip()] == []
    assert report["applied"]


@pytest.mark.reboot
def test_sshd_runs_with_a_valid_configuration(hardened: dict[str, str]) -> None:
    assert hardened["sshd_test"] == "valid"
    assert properties(hardened["sshd_unit"])["ActiveState"] == "active"


@pytest.mark.reboot
@pytest.mark.parametrize("who", ["sshd", "sshd_root"])
def test_sshd_is_strict_for(hardened: dict[str, str], report: dict[str, Any], waived: set[str], who: str) -> None:
    found = properties(hardened[who], " ")
    waived_keys = {name.partition(":")[2].lower() for name in waived if name.startswith("sshd:")}
    settings = {**SSHD, **({"permitrootlogin": "no"} if report["profile"] == "strict" else {})}
    wanted = {key: value for key, value in settings.items() if key not in waived_keys}
    assert {key: found.get(key) for key in wanted} == wanted
    assert 3 <= int(found["maxauthtries"]) <= 6


def test_later_cloud_init_cannot_bring_passwords_back(hardened: dict[str, str]) -> None:
    assert hardened["sshd_later"] == "passwordauthentication no"


@pytest.mark.reboot
def test_kernel_parameters_are_in_effect(hardened: dict[str, str], report: dict[str, Any], waived: set[str]) -> None:
    strict = {"kernel.yama.ptrace_scope": "2"} if report["profile"] == "strict" else {}
    wanted = {key: value for key, value in {**SYSCTLS, **strict}.items() if f"sysctl:{key}" not in waived}
    found = properties(hardened["sysctl"])
    assert {key: found.get(key) for key in wanted} == wanted


@pytest.mark.reboot
def test_pods_can_be_routed(hardened: dict[str, str], expect: dict[str, Any]) -> None:
    if not expect.get("kubernetes_packages"):
        pytest.skip("forwarding is switched on by the Kubernetes prerequisites, which are not part of this machine")
    assert hardened["forwarding"] == "1"


@pytest.mark.reboot
@pytest.mark.parametrize("name", BLOCKED)
def test_module_is_blocked(hardened: dict[str, str], name: str) -> None:
    answer = properties(hardened["modules"])[name]
    # A kernel built without the module cannot load it either.
    assert answer == "install /bin/false" or "not found" in answer, answer


@pytest.mark.parametrize("name", NEVER_BLOCKED)
def test_module_is_not_blocked(hardened: dict[str, str], name: str) -> None:
    assert "/bin/false" not in properties(hardened["modules"])[name]


def test_security_updates_are_installed_unattended(hardened: dict[str, str]) -> None:
    apt = hardened["apt"]
    assert 'APT::Periodic::Update-Package-Lists "1";' in apt
    assert 'APT::Periodic::Unattended-Upgrade "1";' in apt
    assert 'APT::Periodic::Enable "0";' not in apt
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in apt
    assert hardened["upgrades"].split() == ["enabled", "enabled", "enabled"]


def test_only_security_updates(hardened: dict[str, str]) -> None:
    origins = re.findall(
        r'^Unattended-Upgrade::(?:Origins-Pattern|Allowed-Origins)::\s*"(.+)";$', hardened["apt"], re.M
    )
    assert origins
    assert [origin for origin in origins if "security" not in origin.lower()] == []


@pytest.mark.parametrize("name", ["kubelet", "kubeadm", "kubectl", "containerd", "containerd.io", "runc"])
def test_cluster_packages_are_not_upgraded_unattended(hardened: dict[str, str], name: str) -> None:
    patterns = re.findall(r'^Unattended-Upgrade::Package-Blacklist::\s*"(.+)";$', hardened["apt"], re.M)
    assert any(re.match(pattern, name) for pattern in patterns), patterns


def test_umask_of_users_and_of_sudo(hardened: dict[str, str], waived: set[str]) -> None:
    if "logins:umask" in waived or "logins" in waived:
        pytest.skip("waived")
    # A user with a group of its own has the same bits for it (USERGROUPS_ENAB).
    assert hardened["umask"].splitlines()[-1:] in (["0027"], ["0007"])
    assert hardened["sudo_umask"] == "0022"


def test_idle_shells_end(hardened: dict[str, str], report: dict[str, Any], waived: set[str]) -> None:
    wanted = report["profile"] in OPERATORS_ONLY and not waived & {"logins", "logins:timeout"}
    assert hardened["timeout"] == ("900" if wanted else "")


@pytest.mark.reboot
def test_usbguard_runs_where_there_is_usb(hardened: dict[str, str], report: dict[str, Any], waived: set[str]) -> None:
    if report["profile"] not in OPERATORS_ONLY or waived & {"tools", "tools:usbguard"}:
        pytest.skip("not wanted")
    found = properties(hardened["usb"])
    assert found["UnitFileState"] == "enabled"
    assert found["ActiveState"] == ("active" if found["bus"] else "inactive")


@pytest.mark.reboot
def test_no_core_dumps(hardened: dict[str, str]) -> None:
    assert hardened["core"] == "0"


@pytest.mark.reboot
def test_files_are_closed(hardened: dict[str, str], waived: set[str]) -> None:
    modes = {path: mode for path, mode in properties(hardened["modes"]).items() if f"file_modes:{path}" not in waived}
    assert "/root" in modes
    assert {path: mode for path, mode in modes.items() if not mode.endswith("0")} == {}


def test_kernel_parameters_are_where_debian_reads_them_at_boot(hardened: dict[str, str]) -> None:
    assert "60-goldsmith-hardening.conf" in hardened["files"].split()


@pytest.mark.reboot
def test_firewall_lets_in_what_the_profile_says(
    hardened: dict[str, str], report: dict[str, Any], waived: set[str], expect: dict[str, Any]
) -> None:
    rules = hardened["firewall"]
    if "firewall" in waived or expect.get("hardening_firewall", "nftables") != "nftables":
        pytest.skip("no firewall of nftables is wanted")
    assert properties(hardened["firewall_unit"]) == {"ActiveState": "active", "UnitFileState": "enabled"}
    assert "hook input priority filter; policy drop;" in rules
    assert "tcp dport 22 accept" in rules
    assert [port for port in PORTS.get(report["profile"], ()) if port not in rules] == []
    forward = "accept" if report["profile"] in PORTS else "drop"
    assert f"hook forward priority filter; policy {forward};" in rules


@pytest.mark.reboot
def test_a_second_login_works(ssh_command: list[str]) -> None:
    command = [*ssh_command[:1], "-o", "ControlMaster=no", "-o", "ControlPath=none", *ssh_command[1:], "echo in"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)
    assert done.stdout.strip() == "in", done.stderr


@pytest.mark.reboot
def test_fail2ban_runs_exactly_its_jails(hardened: dict[str, str], waived: set[str], expect: dict[str, Any]) -> None:
    if "fail2ban" in waived:
        pytest.skip("waived")
    assert "configuration test is successful" in hardened["fail2ban_test"]
    assert properties(hardened["fail2ban_unit"]) == {"ActiveState": "active", "UnitFileState": "enabled"}
    jails = re.search(r"Jail list:\s*(.*)", hardened["jails"])
    assert jails is not None, hardened["jails"]
    assert sorted(jails[1].split(", ")) == sorted(expect.get("hardening_jails", ["sshd"]))


@pytest.mark.reboot
def test_changes_are_recorded(hardened: dict[str, str], waived: set[str]) -> None:
    if "auditd" in waived:
        pytest.skip("waived")
    assert properties(hardened["audit_unit"])["ActiveState"] == "active"
    keys = set(re.findall(r"(?:-k |-F key=)(\S+)", hardened["audit"]))
    assert {"identity", "modules", "sshd", "sudoers"} <= keys


@pytest.mark.reboot
def test_apparmor_works(hardened: dict[str, str]) -> None:
    enabled, profiles = hardened["apparmor"].split()
    assert enabled == "Y"
    assert int(profiles) > 0


@pytest.mark.reboot
def test_mount_options(hardened: dict[str, str], report: dict[str, Any], waived: set[str]) -> None:
    found = {path: set(options.split(",")) for path, options in properties(hardened["mounts"], " ").items()}
    wanted = {path: options for path, options in MOUNTS.items() if path in found and f"mounts:{path}" not in waived}
    if report["profile"] == "strict":
        wanted |= {"/dev": {"nosuid", "noexec"}, "/proc": {"hidepid=invisible"}}
        wanted |= {"/tmp": wanted["/tmp"] | {"noexec"}} if "/tmp" in wanted else {}
    assert "/dev/shm" in found
    assert {path: options - found[path] for path, options in wanted.items() if options - found[path]} == {}
