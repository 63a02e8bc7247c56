# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role hardening must know of a machine before it begins, and whether its settings are in effect afterwards.

Reads one JSON object from the last argument and prints one. `look` changes nothing; neither does `judge`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SSHD = "/usr/sbin/sshd"
CLIENT = "host=client.example,addr=192.0.2.1"
#: Where sysctl.d is read, the first folder that has a name wins; all names are then applied in their order.
SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
#: What is in a file while the role's firewall of this kind is set up.
FIREWALLS = {
    "nftables": ("/etc/nftables.d/goldsmith.nft", r"table inet goldsmith"),
    "ufw": ("/etc/ufw/ufw.conf", r"\(goldsmith\.images\.hardening\)(?s:.*)^ENABLED=yes$"),
}
#: Seconds that fail2ban has to start its jails.
PATIENCE = 90.0


def run(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@contextlib.contextmanager
def host_key() -> Iterator[list[str]]:
    """sshd tells its settings only if it has a host key and its folder below /run; a root tree has neither."""
    if any(Path("/etc/ssh").glob("ssh_host_*_key")) and os.path.isdir("/run/sshd"):
        yield []
        return
    folder = Path("/run/sshd")
    made = not folder.exists()
    if made:
        folder.mkdir(mode=0o755, parents=True)
    try:
        with tempfile.TemporaryDirectory() as work:
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{work}/key")
            yield ["-h", f"{work}/key"]
    finally:
        if made:
            folder.rmdir()


def sshd_settings(key: list[str], *options: str, user: str = "root") -> dict[str, list[str]]:
    """The effective settings for a user; a keyword may come more than once."""
    code, out = run(SSHD, "-T", *key, "-C", f"user={user},{CLIENT}", *options)
    if code != 0:
        raise RuntimeError(f"sshd -T failed (exit {code}): {out.strip()}")
    found: dict[str, list[str]] = {}
    for line in out.splitlines():
        name, _space, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


def ports_in_use() -> set[int]:
    """Of a running machine: where sshd, or systemd for it, listens, and what its open connections came in by."""
    sockets = run("systemctl", "show", "--property=Listen", "ssh.socket")[1] if active("ssh.socket") else ""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="utf-8").split()
    return ssh_ports(run("ss", "-Htnap")[1], sockets, range(int(first), int(last) + 1))


def ssh_ports(connections: str, sockets: str, outgoing: range) -> set[int]:
    """In what ss and systemctl print. For its users sshd also listens on loopback, and connects to others."""
    found = {int(port) for port in re.findall(r":(\d+) \(Stream\)", sockets)}
    for line in connections.splitlines():
        match = re.match(r'(LISTEN|ESTAB) .*? (\S+):(\d+) .*"sshd', line)
        if match:
            state, address, port = match[1], match[2], int(match[3])
            forwards = address.startswith(("127.", "[::1]")) if state == "LISTEN" else port in outgoing
            found |= set() if forwards else {port}
    return found


def active(unit: str) -> bool:
    return run("systemctl", "is-active", "--quiet", unit)[0] == 0


def sysctl_files() -> list[Path]:
    names: dict[str, Path] = {}
    for folder in SYSCTL_FOLDERS:
        for path in sorted(Path(folder).glob("*.conf")):
            names.setdefault(path.name, path)
    return [names[name] for name in sorted(names)]


def sysctl_values(paths: list[Path]) -> dict[str, tuple[str, str]]:
    """For each key without wildcards its last value, and the file that says it."""
    found = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            match = re.match(r"\s*-?([\w./-]+)\s*=\s*(.*?)\s*$", line)
            if match:
                found[match[1].replace("/", ".")] = (" ".join(match[2].split()), str(path))
    return found


def pam_umask() -> bool:
    session = Path("/etc/pam.d/common-session")
    return session.exists() and "pam_umask" in session.read_text(encoding="utf-8")


def firewalls() -> list[str]:
    """Those that this role has set up, and not anybody else."""
    found = {name: (Path(path), mark) for name, (path, mark) in FIREWALLS.items() if os.path.exists(path)}
    return [name for name, (path, mark) in found.items() if re.search(mark, path.read_text("utf-8"), re.MULTILINE)]


def look(want: dict[str, Any]) -> dict[str, Any]:
    dropin = Path(want["sshd_path"])
    ports: set[int] = set()
    if os.path.exists(SSHD):
        with host_key() as key:
            ports = {int(port) for port in sshd_settings(key)["port"]}
    if not want["offline"]:
        ports |= ports_in_use()
    others = [path for path in sysctl_files() if str(path) != want["sysctl_path"]]
    values = sysctl_values(others)
    routes = ("net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding")
    login_defs = Path("/etc/login.defs")
    user = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    return {
        "ssh_ports": sorted(ports) or [22],
        "sshd_previous": base64.b64encode(dropin.read_bytes()).decode() if dropin.exists() else None,
        "login_user": "" if want["offline"] else user,
        "login_defs": login_defs.read_text(encoding="utf-8") if login_defs.exists() else "",
        "pam_umask": pam_umask(),
        "snapd": os.path.exists("/usr/lib/snapd/snapd"),
        "firewalls": firewalls(),
        "forwarding": any(values.get(name, ("0", ""))[0] == "1" for name in routes),
    }


def judge_sshd(want: dict[str, Any]) -> Iterator[str]:
    """Compare with what the role's own file says where nothing else is read, so that sshd itself writes both."""
    keywords = {name.lower() for name in want["sshd"]}
    with host_key() as key:
        wanted = sshd_settings(key, "-f", want["sshd_path"])
        for user in sorted({"root", "nobody", *want["users"]}):
            found = sshd_settings(key, user=user)
            for name in sorted(keywords):
                if found.get(name) != wanted.get(name):
                    yield f"sshd: {name} is {found.get(name)} for {user} and should be {wanted.get(name)}"


def judge_sysctl(want: dict[str, Any]) -> Iterator[dict[str, str]]:
    merged = sysctl_values(sysctl_files())
    for name, wanted in want["sysctl"].items():
        value, path = merged.get(name, (str(wanted), want["sysctl_path"]))
        if value != str(wanted):
            yield {"id": f"sysctl:{name}", "reason": f"{path} sorts later and says {value}, not {wanted}"}
            continue
        setting = Path("/proc/sys", name.replace(".", "/"))
        if not want["offline"] and setting.exists():
            found = " ".join(setting.read_text(encoding="utf-8").split())
            if found != value:
                yield {"id": f"sysctl:{name}", "reason": f"the kernel keeps {found} and does not take {value}"}


def judge_fail2ban(want: dict[str, Any]) -> Iterator[str]:
    code, out = run("fail2ban-client", "-t")
    if code != 0:
        yield f"fail2ban: fail2ban-client -t failed (exit {code}): {out.strip()}"
        return
    if want["offline"]:
        return
    wanted, found = sorted(want["jails"]), ""
    end = time.monotonic() + PATIENCE
    while active("fail2ban.service"):
        found = run("fail2ban-client", "status")[1]
        jails = re.search(r"Jail list:\s*(.*)", found)
        if jails and sorted(re.findall(r"[^,\s]+", jails[1])) == wanted:
            return
        if time.monotonic() > end:
            break
        time.sleep(1)
    yield f"fail2ban: it should run the jails {', '.join(wanted)}, and says: {found.strip() or 'it is not active'}"


def judge_firewall(want: dict[str, Any]) -> Iterator[str]:
    if want["offline"]:
        return
    ufw = want["firewall"] == "ufw"
    code, out = run("ufw", "status") if ufw else run("nft", "list", "chain", "inet", "goldsmith", "input")
    if code != 0 or ("Status: active" if ufw else "policy drop") not in out:
        yield f"firewall: {want['firewall']} does not filter (exit {code}): {out.strip()}"


def judge_auditd(want: dict[str, Any]) -> Iterator[str]:
    merged = Path("/etc/audit/audit.rules").read_text(encoding="utf-8").splitlines()
    missing = [rule for rule in want["audit_rules"] if rule not in merged]
    if missing:
        yield f"auditd: not in /etc/audit/audit.rules: {'; '.join(missing)}"
    elif not want["offline"]:
        code, out = run("auditctl", "-l")
        loaded = len(re.findall(r"^-[aw] ", out, re.MULTILINE))
        if code != 0 or loaded < len(want["audit_rules"]):
            yield f"auditd: {loaded} of {len(want['audit_rules'])} rules are loaded (exit {code}): {out.strip()}"


def judge_mounts(want: dict[str, Any]) -> Iterator[str]:
    if want["offline"]:
        return
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    flags = {fields[1]: fields[3].split(",") for fields in mounts}
    for path, options in want["mounts"].items():
        missing = [option for option in options if path in flags and option not in flags[path]]
        if missing:
            yield f"mounts: {path} is mounted without {', '.join(missing)}"


def judge_tools(want: dict[str, Any]) -> Iterator[str]:
    if want["offline"] or "usbguard" not in want["tools"] or not os.path.isdir("/sys/bus/usb/devices"):
        return
    if not active("usbguard.service"):
        said = run("systemctl", "status", "--no-pager", "usbguard.service")[1]
        yield f"tools: usbguard is not active: {said.strip()}"


def judge_logins(want: dict[str, Any]) -> Iterator[dict[str, str]]:
    if "umask" in want["logins"] and not pam_umask():
        reason = (
            "somebody has edited /etc/pam.d/common-session, so pam-auth-update leaves it alone: add pam_umask.so there"
        )
        yield {"id": "logins:umask", "reason": reason}


def judge_apparmor(want: dict[str, Any]) -> Iterator[dict[str, str]]:
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    if not want["offline"] and (not enabled.exists() or not enabled.read_text(encoding="utf-8").startswith("Y")):
        yield {"id": "apparmor", "reason": "the kernel runs without AppArmor"}


PROBLEMS = {
    "sshd": judge_sshd,
    "fail2ban": judge_fail2ban,
    "firewall": judge_firewall,
    "auditd": judge_auditd,
    "mounts": judge_mounts,
    "tools": judge_tools,
}
CONFLICTS = {"sysctl": judge_sysctl, "logins": judge_logins, "apparmor": judge_apparmor}


def judge(want: dict[str, Any]) -> dict[str, Any]:
    areas = want["areas"]
    return {
        "problems": [text for area, ask in PROBLEMS.items() if area in areas for text in ask(want)],
        "conflicts": [entry for area, ask in CONFLICTS.items() if area in areas for entry in ask(want)],
    }


if __name__ == "__main__":
    print(json.dumps({"look": look, "judge": judge}[sys.argv[1]](json.loads(sys.argv[2]))))
