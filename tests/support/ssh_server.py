# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An SSH server of the test's own, on loopback: Debian's, unpacked but not installed, which would open port 22."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The library is for the user "sshd", whom only the installation makes.
PACKAGES = ("openssh-server", "libwrap0", "libnss-wrapper")
CLIENT = "-F /dev/null -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
CONFIGURATION = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
PidFile none
UsePAM no
PermitRootLogin yes
Subsystem sftp internal-sftp
"""
# Programs of its own that sshd starts since 9.8 and 10.0.
PARTS = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}
PRIVILEGE_SEPARATION = Path("/run/sshd")


def unpack(folder: Path) -> Path:
    """The packages' files below the folder."""
    folder.mkdir()
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *PACKAGES]
    done = subprocess.run(download, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(download)}: {done.stderr} (apt-get update?)"
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
    return folder / "root"


def environment(root: Path, folder: Path) -> dict[str, str]:
    """What the unpacked server needs to find its libraries and its user."""
    passwd = Path("/etc/passwd").read_text()
    if "\nsshd:" not in passwd:
        passwd += f"sshd:x:65533:65534::{PRIVILEGE_SEPARATION}:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(passwd)
    [wrapper] = root.rglob("libnss_wrapper.so")
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join({str(path.parent) for path in root.rglob("*.so.*")}),
        "LD_PRELOAD": str(wrapper),
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": "/etc/group",
    }


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, Any]]:
    """Ansible's variables for a host that is this machine, reached through a server with its files in the folder."""
    root = unpack(folder / "sshd")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    parts = {option: root / "usr/lib/openssh" / name for option, name in PARTS.items()}
    lines = [f"{option} {path}\n" for option, path in parts.items() if path.exists()]
    (folder / "sshd_config").write_text(CONFIGURATION.format(port=port, folder=folder) + "".join(lines))
    made = os.geteuid() == 0 and not PRIVILEGE_SEPARATION.exists()
    if made:
        PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    log = folder / "sshd.log"
    command = [root / "usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config"]
    with log.open("w") as stream:
        server = subprocess.Popen(command, env=environment(root, folder), stderr=stream)
    try:
        deadline = time.monotonic() + 10
        while "listening" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield {
            "ansible_host": "127.0.0.1",
            "ansible_port": port,
            "ansible_user": getpass.getuser(),
            "ansible_ssh_private_key_file": str(folder / "key"),
            "ansible_ssh_common_args": CLIENT,
            "ansible_ssh_args": "-o ControlMaster=no",
            "ansible_python_interpreter": sys.executable,
        }
    finally:
        server.kill()
        server.wait()
        if made:
            PRIVILEGE_SEPARATION.rmdir()
