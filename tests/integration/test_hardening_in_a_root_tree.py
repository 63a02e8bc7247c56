# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role hardening on a Debian that is not booted: what sshd, fail2ban, modprobe, nft and ufw make of its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import root_tree

pytestmark = pytest.mark.skipif(bool(root_tree.missing()), reason=root_tree.missing())

ROLE = "goldsmith.images.hardening"
# What the role would install; the tests are about what it writes. fail2ban's recommendations are left out.
PACKAGES = (
    *root_tree.PACKAGES,
    "apparmor",
    "auditd",
    "cracklib-runtime",
    "fail2ban",
    "iproute2",
    "libpam-pwquality",
    "libpam-tmpdir",
    "nftables",
    "openssh-server",
    "python3-systemd",
    "sudo",
    "ufw",
    "unattended-upgrades",
    "usbguard",
)
PROFILES = ("baseline", "kubernetes_node", "cml_host", "strict")

_made: dict[str, root_tree.RootTree] = {}


@pytest.fixture(params=root_tree.SUITES)
def tree(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> root_tree.RootTree:
    suite = request.param
    if suite not in _made:
        _made[suite] = root_tree.bootstrap(tmp_path_factory.mktemp("hardening") / suite, suite, PACKAGES)
    return _made[suite].copy(tmp_path / "tree")


def flat(text: str) -> str:
    return " ".join(text.split())


def report(tree: root_tree.RootTree) -> dict[str, Any]:
    return json.loads((tree.path / "etc/image-hardening.json").read_text(encoding="utf-8"))


def failed_logins(tree: root_tree.RootTree, message: str) -> int:
    """How many fail2ban would count for what sshd writes to the journal."""
    mode = re.search(
        r"^mode = (\w+)$", (tree.path / "etc/fail2ban/jail.d/zz-goldsmith.local").read_text(), re.MULTILINE
    )
    assert mode is not None
    said = tree.run("fail2ban-regex", f"Nov 27 08:51:37 host sshd[633]: {message}", f"sshd[mode={mode[1]}]")
    return int(re.findall(r"(\d+) matched", said)[-1])


def effective_sshd(tree: root_tree.RootTree, user: str = "debian") -> dict[str, str]:
    """As the daemon would run for this user; a tree has no host keys and no /run/sshd."""
    script = """\
set -e
mkdir -p /run/sshd
[ -e /tmp/key ] || ssh-keygen -q -t ed25519 -N '' -f /tmp/key
exec /usr/sbin/sshd -T -h /tmp/key -C "user=$1,host=client.example,addr=192.0.2.1"
"""
    lines = tree.run("sh", "-c", script, "sh", user).splitlines()
    return {name: value for name, _space, value in (line.partition(" ") for line in lines)}


def in_a_network_of_its_own(tree: root_tree.RootTree, script: str) -> str:
    """The firewall must not touch that of the host."""
    return tree.run("unshare", "--net", "sh", "-ec", script)


def blocked(tree: root_tree.RootTree) -> set[str]:
    configuration = tree.run("modprobe", "--showconfig")
    return set(re.findall(r"^install (\S+) /bin/false$", configuration, re.MULTILINE))


@pytest.mark.slow_matrix  # the scenario `hardening` of Molecule sees a profile in a machine
@pytest.mark.parametrize("profile", PROFILES)
def test_profile(tree: root_tree.RootTree, ansible_env: dict[str, str], profile: str) -> None:
    # A later user-data asked for passwords; somebody wants to route.
    (tree.path / "etc/ssh/sshd_config.d/50-cloud-init.conf").write_text("PasswordAuthentication yes\n")
    (tree.path / "etc/sysctl.d/99-router.conf").write_text("net.ipv4.ip_forward = 1\nkernel.sysrq = 1\n")

    first_look = tree.play([ROLE], ansible_env, "--check", hardening_profile=profile)
    assert first_look.code == 0, first_look.output
    assert not (tree.path / "etc/image-hardening.json").exists()
    assert not (tree.path / "etc/ssh/sshd_config.d/00-goldsmith.conf").exists()

    first = tree.play([ROLE], ansible_env, hardening_profile=profile)
    assert first.code == 0, first.output
    second = tree.play([ROLE], ansible_env, hardening_profile=profile)
    assert second.code == 0, second.output
    assert second.recap["changed"] == 0, second.output

    strict = profile == "strict"
    sshd = effective_sshd(tree)
    assert sshd["passwordauthentication"] == "no"
    assert sshd["permitrootlogin"] == ("no" if strict else "without-password")
    assert sshd["allowtcpforwarding"] == ("no" if strict else "local")
    assert sshd["port"] == "22"

    assert tree.run("fail2ban-client", "-t").strip().endswith("OK: configuration test is successful")
    jails = tree.run("fail2ban-client", "-d")
    assert set(re.findall(r"\['start', '(\S+)'\]", jails)) == {"sshd"}, jails
    assert "['add', 'sshd', 'systemd']" in jails
    # Who polls SSH while a machine boots ends many connections before a login.
    assert failed_logins(tree, "Connection closed by 192.0.2.7 port 54298 [preauth]") == 0
    assert failed_logins(tree, "Invalid user admin from 192.0.2.7 port 54298") == 1

    assert {"cramfs", "dccp", "usb_storage"} <= blocked(tree)
    assert not {"overlay", "br_netfilter", "vfat", "isofs"} & blocked(tree)
    assert ("squashfs" in blocked(tree)) == (profile in ("kubernetes_node", "strict"))
    assert ("sctp" in blocked(tree)) == (profile in ("baseline", "strict"))

    sysctl = (tree.path / "etc/sysctl.d/60-goldsmith-hardening.conf").read_text(encoding="utf-8")
    assert "kernel.kptr_restrict = 2\n" in sysctl
    assert ("net.ipv4.conf.all.forwarding" in sysctl) == strict
    after_the_distributions = (tree.path / "etc/sysctl.d/99-protected-goldsmith.conf").read_text(encoding="utf-8")
    assert "fs.protected_fifos = 2\n" in after_the_distributions
    assert "kernel" not in after_the_distributions
    assert not re.search(r"^(/etc/sysctl\.conf)", first.output, re.MULTILINE)

    rules = in_a_network_of_its_own(
        tree, "nft -f /etc/nftables.d/goldsmith.nft; nft -f /etc/nftables.d/goldsmith.nft; nft list ruleset"
    )
    forward = {"kubernetes_node": "accept", "cml_host": "accept"}.get(profile, "drop")
    assert f"hook forward priority filter; policy {forward};" in rules
    assert "hook input priority filter; policy drop;" in rules
    assert "tcp dport 22 accept" in rules
    ports = {
        "kubernetes_node": ["tcp dport 6443", "tcp dport 10250", "th dport 30000-32767", "udp dport 8472"],
        "cml_host": [
            *(f"tcp dport {port} accept" for port in (22, 80, 443, 1122, 9090)),
            "meta l4proto { tcp, udp } th dport 2000-7999 accept",
        ],
    }
    assert [port for port in ports.get(profile, []) if port not in rules] == []

    units = ["goldsmith-firewall", "fail2ban", "auditd", "apparmor", "goldsmith-mount-options"]
    assert tree.run("systemctl", "is-enabled", *units).split() == ["enabled"] * len(units)
    verify = [f"/etc/systemd/system/goldsmith-{name}.service" for name in ("firewall", "mount-options")]
    tree.run("systemd-analyze", "verify", *verify)
    assert "-k identity" in (tree.path / "etc/audit/audit.rules").read_text(encoding="utf-8")
    assert (tree.path / "etc/crontab").exists() is False or (tree.path / "etc/crontab").stat().st_mode & 0o77 == 0

    usb = tree.path / "etc/systemd/system/usbguard.service.d/60-goldsmith.conf"
    assert usb.exists() == (profile in ("kubernetes_node", "strict"))
    if usb.exists():
        tree.run("usbguard-rule-parser", "-f", "/etc/usbguard/rules.conf")

    setting = "echo nobody:$1 | chpasswd 2>&1 || true"
    assert "shorter than 14 characters" in tree.run("sh", "-c", setting, "sh", "Xk9-vQz7")
    assert "same characters" in tree.run("sh", "-c", setting, "sh", "Xk9-vQz7pLLLLL-mT4w")
    assert tree.run("sh", "-c", setting, "sh", "Xk9-vQz7pL-mT4w") == ""

    found = report(tree)
    assert found["profile"] == profile
    assert {"sshd:PasswordAuthentication", "firewall", "fail2ban", "modules:cramfs"} <= set(found["applied"])
    assert found["waived"] == []
    conflicts = {entry["id"]: entry["reason"] for entry in found["conflicts"]}
    assert "99-router.conf sorts later and says 1, not 0" in conflicts["sysctl:kernel.sysrq"]
    assert ("firewall" in conflicts) == strict


def test_waivers(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    waivers = [
        {"id": "sshd:MaxAuthTries", "reason": "agents with many keys"},
        {"id": "modules:cramfs", "reason": "an old installer"},
        {"id": "sysctl:kernel.sysrq", "reason": "hung machines are rebooted by it"},
        {"id": "auditd", "reason": "another agent records"},
    ]
    played = tree.play([ROLE], ansible_env, hardening_waivers=waivers, hardening_banner_enabled=False)
    assert played.code == 0, played.output
    assert effective_sshd(tree)["maxauthtries"] == "6"
    assert "cramfs" not in blocked(tree)
    assert not (tree.path / "etc/audit/rules.d/60-goldsmith.rules").exists()
    found = report(tree)
    assert sorted(entry["id"] for entry in found["waived"]) == sorted(entry["id"] for entry in waivers)
    assert {"id": "banner", "reason": "switched off"} in found["skipped"]
    assert not {"sshd:MaxAuthTries", "modules:cramfs", "auditd:sudoers"} & set(found["applied"])


@pytest.mark.slow_matrix
def test_tags_pick_an_area_or_leave_one_out(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    banner, sshd = tree.path / "etc/issue.net", tree.path / "etc/ssh/sshd_config.d/00-goldsmith.conf"
    fail2ban = tree.path / "etc/fail2ban/jail.d/zz-goldsmith.local"
    alone = tree.play([ROLE], ansible_env, "--tags", "hardening_banner")
    assert alone.code == 0, alone.output
    assert "authorized use only" in banner.read_text(encoding="utf-8")
    assert not sshd.exists()
    without = tree.play([ROLE], ansible_env, "--skip-tags", "hardening_fail2ban")
    assert without.code == 0, without.output
    assert sshd.exists()
    assert not fail2ban.exists()
    assert not (tree.path / "etc/image-hardening.json").exists()
    none = tree.play([ROLE], ansible_env, "--skip-tags", "hardening")
    assert none.code == 0, none.output
    # The arguments are checked in any case.
    assert none.recap["ok"] == 1


def test_what_is_asked_for_must_exist(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    unknown = tree.play([ROLE], ansible_env, hardening_waivers=[{"id": "sshd:MaxAuthTrys", "reason": "typo"}])
    assert unknown.code != 0
    assert "Ids that stand for nothing: sshd:MaxAuthTrys." in flat(unknown.output)
    assert "sshd:MaxAuthTries, sshd:" in flat(unknown.output)
    without = tree.play([ROLE], ansible_env, hardening_waivers=[{"id": "auditd", "reason": " "}])
    assert without.code != 0
    assert "has a reason" in flat(without.output)
    profile = tree.play([ROLE], ansible_env, hardening_profile="paranoid")
    assert profile.code != 0
    assert "one of: baseline, kubernetes_node, cml_host, strict" in flat(profile.output)
    assert not (tree.path / "etc/image-hardening.json").exists()


def test_settings_that_win_over_the_role_are_found(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    # One sorts first, the other counts for one user only.
    folder = tree.path / "etc/ssh/sshd_config.d"
    (folder / "0-first.conf").write_text("X11Forwarding yes\n")
    (folder / "60-root.conf").write_text("Match User root\n  PasswordAuthentication yes\n")
    played = tree.play([ROLE], ansible_env)
    assert played.code != 0
    assert "sshd: x11forwarding is ['yes'] for nobody and should be ['no']" in played.output
    assert "sshd: passwordauthentication is ['yes'] for root and should be ['no']" in played.output
    assert "passwordauthentication is ['yes'] for nobody" not in played.output
    assert not (tree.path / "etc/image-hardening.json").exists()


def test_the_port_of_sshd_stays_open(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    (tree.path / "etc/ssh/sshd_config.d/10-port.conf").write_text("Port 2222\n")
    played = tree.play([ROLE], ansible_env)
    assert played.code == 0, played.output
    rules = (tree.path / "etc/nftables.d/goldsmith.nft").read_text(encoding="utf-8")
    assert "tcp dport 2222 accept" in rules
    assert "dport 22 " not in rules
    assert "port = 2222\n" in (tree.path / "etc/fail2ban/jail.d/zz-goldsmith.local").read_text(encoding="utf-8")


@pytest.mark.slow_matrix
def test_ufw_is_only_written(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    variables = {
        "hardening_profile": "kubernetes_node",
        "hardening_firewall": "ufw",
        "hardening_firewall_allow": [
            {"port": "8080", "source": "192.0.2.0/24"},
            {"port": "9000-9010", "protocol": "both", "source": "2001:db8::/32"},
        ],
    }
    host_before = tree.run("nft", "list", "ruleset", check=False)
    played = tree.play([ROLE], ansible_env, **variables)
    assert played.code == 0, played.output
    assert tree.run("nft", "list", "ruleset", check=False) == host_before
    second = tree.play([ROLE], ansible_env, **variables)
    assert second.recap["changed"] == 0, second.output
    # Started where only this test sees it, ufw understands and loads what was written.
    start = """\
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv4/conf/all/log_martians
init=$(ls /usr/lib/ufw/ufw-init /lib/ufw/ufw-init 2>/dev/null | head -1)
$init start >&2
ufw status verbose
echo "log_martians=$(cat /proc/sys/net/ipv4/conf/all/log_martians)"
"""
    status = in_a_network_of_its_own(tree, start)
    assert "Default: deny (incoming), allow (outgoing), allow (routed)" in status
    for port in ("22/tcp", "6443/tcp", "30000:32767/tcp", "30000:32767/udp"):
        assert re.search(rf"^{port} +ALLOW IN +Anywhere", status, re.MULTILINE), status
    assert re.search(r"^8080/tcp +ALLOW IN +192\.0\.2\.0/24", status, re.MULTILINE), status
    assert re.search(r"^9000:9010/udp +ALLOW IN +2001:db8::/32", status, re.MULTILINE), status
    assert re.search(r"^Anywhere on cni\+ +ALLOW IN", status, re.MULTILINE), status
    # Its own kernel parameters say 0.
    assert "log_martians=1" in status


@pytest.mark.slow_matrix
def test_the_other_firewall_goes(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    only = ("--tags", "hardening_firewall")
    rules, unit = tree.path / "etc/nftables.d/goldsmith.nft", "goldsmith-firewall.service"
    # Somebody's own ufw is none of the role's business.
    (tree.path / "etc/ufw/ufw.conf").write_text("ENABLED=yes\n")
    assert tree.play([ROLE], ansible_env, *only).code == 0
    assert tree.run("systemctl", "is-enabled", unit, "ufw.service").split() == ["enabled", "enabled"]

    ufw = tree.play([ROLE], ansible_env, *only, hardening_firewall="ufw")
    assert ufw.code == 0, ufw.output
    assert not rules.exists()
    assert list((tree.path / "etc/systemd/system").rglob(unit)) == []
    assert tree.run("systemctl", "is-enabled", "ufw.service").strip() == "enabled"

    nftables = tree.play([ROLE], ansible_env, *only)
    assert nftables.code == 0, nftables.output
    assert rules.exists()
    assert tree.run("systemctl", "is-enabled", unit).strip() == "enabled"
    assert tree.run("systemctl", "is-enabled", "ufw.service", check=False).strip() == "disabled"
    assert "ENABLED=no" in (tree.path / "etc/ufw/ufw.conf").read_text(encoding="utf-8")
    again = tree.play([ROLE], ansible_env, *only)
    assert again.recap["changed"] == 0, again.output


def test_no_unit_without_mount_options(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    only = ("--tags", "hardening_mounts")
    assert tree.play([ROLE], ansible_env, *only).code == 0
    assert tree.run("systemctl", "is-enabled", "goldsmith-mount-options.service").strip() == "enabled"
    waivers = [{"id": "mounts:/tmp", "reason": "another unit does it"}]
    variables: dict[str, Any] = {"hardening_waivers": waivers, "hardening_mounts_options": {"/dev/shm": []}}
    none = tree.play([ROLE], ansible_env, *only, **variables)
    assert none.code == 0, none.output
    assert list((tree.path / "etc/systemd/system").rglob("goldsmith-mount-options.service")) == []
    again = tree.play([ROLE], ansible_env, *only, **variables)
    assert again.recap["changed"] == 0, again.output


def test_a_failed_start_is_taken_back(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    dropin = tree.path / "etc/ssh/sshd_config.d/00-goldsmith.conf"
    dropin.write_text("X11Forwarding no\n")
    tree.run("systemctl", "mask", "fail2ban.service")
    played = tree.play([ROLE], ansible_env, "--skip-tags", "hardening_auditd")
    assert played.code != 0
    said = "sshd has its former settings back, and the firewall is off, also at the next boot."
    assert said in flat(played.output)
    assert dropin.read_text() == "X11Forwarding no\n"
    assert not (tree.path / "etc/nftables.d/goldsmith.nft").exists()
    assert list((tree.path / "etc/systemd/system").rglob("goldsmith-firewall.service")) == []


@pytest.mark.slow_matrix
@pytest.mark.parametrize("tree", ["bookworm"], indirect=True)
def test_umask_by_pam_also_after_a_run_that_was_cut_off(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    session = tree.path / "etc/pam.d/common-session"
    assert "pam_umask" not in session.read_text()
    only = ("--tags", "hardening_logins")
    first = tree.play([ROLE], ansible_env, *only)
    assert first.code == 0, first.output
    assert "pam_umask.so" in session.read_text()
    tree.run("pam-auth-update", "--disable", "goldsmith-umask")
    assert "pam_umask" not in session.read_text()
    again = tree.play([ROLE], ansible_env, *only)
    assert again.code == 0, again.output
    assert "pam_umask.so" in session.read_text()
    assert tree.play([ROLE], ansible_env, *only).recap["changed"] == 0


@pytest.mark.slow_matrix
@pytest.mark.parametrize("tree", ["bookworm"], indirect=True)
def test_pam_that_somebody_has_edited_is_a_conflict(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    session = tree.path / "etc/pam.d/common-session"
    edited = "session required pam_unix.so\n"
    session.write_text(edited)
    first = tree.play([ROLE], ansible_env)
    assert first.code == 0, first.output
    assert session.read_text() == edited
    conflicts = {entry["id"]: entry["reason"] for entry in report(tree)["conflicts"]}
    assert "/etc/pam.d/common-session" in conflicts["logins:umask"]
    assert tree.play([ROLE], ansible_env).recap["changed"] == 0
