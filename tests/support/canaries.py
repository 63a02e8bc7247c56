# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets planted in a machine that becomes an image, one in each place where builds have been found to leave them."""

from __future__ import annotations

import secrets
import shlex
import subprocess
from pathlib import Path

from ansible_collections.goldsmith.images.plugins.module_utils import _image_tree

PLACES = [
    "/root/.bash_history",
    "/home/admin/.zsh_history",
    "/home/admin/.python_history",
    "/root/.viminfo",
    "/var/log/syslog",
    "/var/log/auth.log.1",
    "/var/log/cloud-init-output.log",
    "/var/log/apt/term.log",
    "/var/log/journal/0123456789abcdef0123456789abcdef/system@0.journal",
    "/var/log/audit/audit.log",
    "/var/lib/cloud/instances/i-1/user-data.txt",
    "/var/lib/cloud/instances/i-1/scripts/part-001",
    "/var/lib/cloud/seed/nocloud/user-data",
    "/etc/apt/auth.conf",
    "/etc/apt/auth.conf.d/mirror.conf",
    "/root/.netrc",
    "/home/admin/.aws/credentials",
    "/root/.docker/config.json",
    "/home/admin/.kube/config",
    "/home/admin/.git-credentials",
    "/root/.env",
    "/root/.ssh/id_ed25519",
    "/home/admin/.ssh/authorized_keys",
    "/etc/ssh/ssh_host_rsa_key",
    "/root/.ansible/tmp/ansible-tmp-1/AnsiballZ_x.py",
    "/root/.cache/pip/http/0",
    "/tmp/script_4711.sh",
    "/var/tmp/.hidden/answers",
    "/var/crash/core.1",
    "/var/lib/systemd/coredump/core.x",
    "/var/mail/root",
    "/var/spool/cron/atjobs/a00001",
    "/var/lib/dhcp/dhclient.leases",
    "/var/lib/kubelet/pki/kubelet.key",
    "/etc/kubernetes/admin.conf",
    "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256/0a",
    "/var/backups/shadow.bak",
    "/etc/shadow-",
    "/swapfile",
]
# Lines of files that stay.
LINES = {
    "/etc/environment": "HTTPS_PROXY=http://joe:{}@proxy.example:3128",
    "/etc/apt/apt.conf.d/80proxy": 'Acquire::http::Proxy "http://joe:{}@proxy.example:3128";',
    "/etc/hosts": "127.0.1.1 {}",
}
# Removed before the clean-up looks: large enough to have blocks of their own, and all of them.
DELETED = ["/root/installer.run", "/opt/vendor/licence.dat"]


def make() -> dict[str, str]:
    """Place -> secret. No secret is a part of another, or of anything else."""
    run = secrets.token_hex(8)
    places = [*PLACES, *LINES, *DELETED]
    return {place: f"canary-{number:02d}-{run}" for number, place in enumerate(places)}


def script(canaries: dict[str, str], root: str = "") -> str:
    """A shell script that plants them below a folder. It holds all of them: it may not be in the image."""
    lines = ["set -e", "umask 077"]
    for place, secret in canaries.items():
        text = LINES.get(place, "password={}").format(secret)
        count = 4096 if place in DELETED else 1
        file = shlex.quote(root + place)
        lines.append(f"mkdir -p {shlex.quote(root + str(Path(place).parent))}")
        lines.append(f"yes {shlex.quote(text)} | head -n {count} >>{file}")
    lines.append("sync")
    lines += [f"rm {shlex.quote(root + place)}" for place in canaries if place in DELETED]
    return "\n".join(lines) + "\n"


def found_in(image: Path, canaries: dict[str, str]) -> set[str]:
    """The places whose secret stands anywhere in the decoded disk, read with qemu-img and the project's own search."""
    raw = image.with_suffix(".canaries.raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", "-W", str(image), str(raw)], check=True)
    places = list(canaries)
    wanted = [secret.encode() for secret in canaries.values()]
    with raw.open("rb") as stream:
        found = {places[number] for number, _offset in _image_tree.search(stream, wanted)}
    raw.unlink()
    return found
