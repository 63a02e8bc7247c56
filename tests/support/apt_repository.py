# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A signed apt repository with small stand-ins for the Kubernetes packages, served on loopback.

The stand-ins have the names, versions, dependencies among each other and paths of the community's packages; the kubelet
brings a real unit and a postinst that starts it, as a package made with debhelper does.
With payloads they have the sizes of the real ones, too (real_sizes), and a little of their content.
Made with dpkg-deb, apt-ftparchive and gpg. Also a program: ``apt_repository.py FOLDER [PORT]`` serves until its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import lzma
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TOOLS = ("dpkg-deb", "apt-ftparchive", "gpg")
# Two minor versions, as a mirror may have them, and two patch releases of the first.
VERSIONS = ("1.36.1-1.1", "1.36.2-1.1", "1.37.0-1.1")

# What upstream's packages of 1.33 to 1.36 take, in 10^6 bytes: installed (about), and packed with xz as a .deb.
REAL_SIZES = {
    "kubelet": (59.0, 13.1),
    "kubeadm": (74.0, 12.6),
    "kubectl": (60.0, 11.8),
    "cri-tools": (40.0, 17.3),
    "kubernetes-cni": (100.0, 39.9),
}

KUBELET_UNIT = """\
[Unit]
Description=kubelet: The Kubernetes Node Agent (stand-in)
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
"""
KUBELET_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    deb-systemd-invoke start kubelet.service
fi
"""


@dataclasses.dataclass(frozen=True)
class AptRepository:
    """What a client needs to know of it."""

    folder: Path
    key: str
    fingerprint: str
    port: int = 0

    def url(self, host: str = "127.0.0.1") -> str:
        """A guest on QEMU's user network finds the host's loopback at 10.0.2.2."""
        return f"http://{host}:{self.port}/"


def missing_tools() -> list[str]:
    return [name for name in TOOLS if shutil.which(name) is None]


def _script(answer: str, without_arguments: str = "exit 0") -> str:
    return f'#!/bin/sh\nif [ $# -gt 0 ]; then echo "{answer}"; exit 0; fi\n{without_arguments}\n'


def real_sizes(program: Path) -> dict[str, bytes]:
    """Return package -> what is put behind the end of its program, so that it takes the room of upstream's.

    It is taken from a real Go *program*: a share of every 64 KiB, so that code, tables and constants have the shares
    that they have there, and another share for each package. Programs differ in how well they compress; a share of
    noise makes up for it, so that xz packs the whole about as well as it packs upstream's.
    """
    block = 1 << 16
    content = program.read_bytes()
    blocks = [content[start : start + block] for start in range(0, len(content) - block, block)]
    ratio = len(lzma.compress(b"".join(blocks[::20]), preset=1)) / len(b"".join(blocks[::20]))
    payloads = {}
    for number, (name, (installed, packed)) in enumerate(REAL_SIZES.items()):
        noise = max(0.0, (packed / installed - ratio) / (1 - ratio))
        random_bytes = random.Random(name)
        share = int(installed * 10**6) // len(blocks)
        real = share - int(share * noise)
        begin = number * block // len(REAL_SIZES)
        # Repeated for a share that begins near the end of its block, and for a small program.
        repeat = 2 + share // block
        payloads[name] = b"".join(
            (one * repeat)[begin : begin + real] + random_bytes.randbytes(share - real) for one in blocks
        )
    return payloads


def _build(
    target: Path,
    name: str,
    version: str,
    depends: str,
    files: dict[str, str],
    postinst: str = "",
    payload: bytes = b"",
) -> None:
    with tempfile.TemporaryDirectory(prefix="stand-in-") as scratch:
        root = Path(scratch)
        control = root / "DEBIAN"
        control.mkdir(mode=0o755)
        control.joinpath("control").write_text(
            textwrap.dedent(f"""\
            Package: {name}
            Version: {version}
            Architecture: all
            Maintainer: Nobody <nobody@example.org>
            Section: admin
            Priority: optional
            Description: stand-in for {name}, for tests only
            """)
            + (f"Depends: {depends}\n" if depends else ""),
            encoding="utf-8",
        )
        if postinst:
            control.joinpath("postinst").write_text(postinst, encoding="utf-8")
            control.joinpath("postinst").chmod(0o755)
        for path, content in files.items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            program = content.startswith("#!")
            # The shell reads line by line, and each of these scripts ends before its last line.
            file.write_bytes(content.encode() + (payload if program else b""))
            file.chmod(0o755 if program else 0o644)
        root.chmod(0o755)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(target)],
            check=True,
            capture_output=True,
        )


def build_packages(
    folder: Path, versions: Sequence[str] = VERSIONS, payloads: Mapping[str, bytes] | None = None
) -> None:
    """Write the .deb files of every version; *payloads* as real_sizes returns them."""
    for version in versions:
        upstream = version.partition("-")[0]
        minor = upstream.rpartition(".")[0]
        sleep = "exec sleep infinity"
        packages: list[tuple[str, str, dict[str, str], str]] = [
            ("cri-tools", "", {"/usr/bin/crictl": _script(f"crictl version v{upstream}")}, ""),
            ("kubernetes-cni", "", {"/opt/cni/bin/loopback": _script("CNI loopback plugin of kubernetes-cni")}, ""),
            ("kubectl", "", {"/usr/bin/kubectl": _script(f"Client Version: v{upstream}")}, ""),
            ("kubeadm", f"cri-tools (>= {minor}.0)", {"/usr/bin/kubeadm": _script(f"v{upstream}")}, ""),
            (
                "kubelet",
                "kubernetes-cni",
                {
                    "/usr/bin/kubelet": _script(f"Kubernetes v{upstream}", sleep),
                    "/usr/lib/systemd/system/kubelet.service": KUBELET_UNIT,
                },
                KUBELET_POSTINST,
            ),
        ]
        for name, depends, files, postinst in packages:
            payload = (payloads or {}).get(name, b"")
            _build(folder / f"{name}_{version}_all.deb", name, version, depends, files, postinst, payload)


def make_key() -> tuple[Path, str, str]:
    """A new signing key: its GnuPG home (the caller removes it), armored public key and fingerprint."""
    # Not below a test's own folder: the path of the agent's socket may not be longer than 107 characters.
    home = Path(tempfile.mkdtemp(prefix="gnupg-"))
    _gpg(home, "--quick-generate-key", "Stand-in repository <nobody@example.org>", "ed25519", "sign", "never")
    listing = [line.split(":") for line in _gpg(home, "--with-colons", "--list-keys").splitlines()]
    fingerprint = next(fields[9] for fields in listing if fields[0] == "fpr")
    return home, _gpg(home, "--armor", "--export", fingerprint), fingerprint


def _gpg(home: Path, *arguments: str) -> str:
    command = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout


def remove_key(home: Path) -> None:
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
    shutil.rmtree(home, ignore_errors=True)


def index_and_sign(folder: Path, home: Path) -> None:
    """Packages, Release and InRelease of a flat repository."""
    for name in ("InRelease", "Release", "Packages"):
        folder.joinpath(name).unlink(missing_ok=True)

    def ftparchive(*arguments: str) -> str:
        command = ["apt-ftparchive", "-o", "APT::FTPArchive::Release::Origin=stand-in", *arguments]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

    folder.joinpath("Packages").write_text(ftparchive("packages", "."), encoding="utf-8")
    release = ftparchive("release", ".")
    folder.joinpath("Release").write_text(release, encoding="utf-8")
    _gpg(home, "--clearsign", "--output", str(folder / "InRelease"), str(folder / "Release"))


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in the base class
        """A test's output is not the place for an access log."""


@contextlib.contextmanager
def serve(folder: Path, port: int = 0, address: str = "127.0.0.1") -> Iterator[int]:
    """Serve a folder, on loopback unless told otherwise; yields the port."""
    handler = functools.partial(_Handler, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer((address, port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def apt_repository(
    folder: Path,
    versions: Sequence[str] = VERSIONS,
    port: int = 0,
    *,
    address: str = "127.0.0.1",
    payloads: Mapping[str, bytes] | None = None,
) -> Iterator[AptRepository]:
    """Make, sign and serve the repository; the key is forgotten at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    build_packages(folder, versions, payloads)
    home, key, fingerprint = make_key()
    try:
        index_and_sign(folder, home)
        folder.joinpath("Release.key").write_text(key, encoding="utf-8")
        with serve(folder, port, address) as actual:
            yield AptRepository(folder, key, fingerprint, actual)
    finally:
        remove_key(home)


@contextlib.contextmanager
def signed_suite(folder: Path, suite: str, packages: Mapping[str, Path]) -> Iterator[AptRepository]:
    """Serve a suite with the one component `stable`, of packages made from *packages* (name -> tree)."""
    pool, index = folder / "pool", folder / "dists" / suite
    component = index / "stable" / "binary-amd64"
    pool.mkdir(parents=True)
    component.mkdir(parents=True)
    home, key, fingerprint = make_key()
    try:
        for name, tree in packages.items():
            control = tree / "DEBIAN" / "control"
            control.parent.mkdir(mode=0o755)
            control.write_text(
                f"Package: {name}\nVersion: 2.0.0-1\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\n"
                "Conflicts: containerd, runc\nReplaces: containerd, runc\nProvides: containerd, runc\n"
                f"Description: stand-in for {name}, for tests only\n"
            )
            command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(pool / f"{name}.deb")]
            subprocess.run(command, check=True, capture_output=True)

        def ftparchive(*arguments: str, cwd: Path) -> str:
            return subprocess.run(
                ["apt-ftparchive", *arguments], cwd=cwd, check=True, capture_output=True, text=True
            ).stdout

        component.joinpath("Packages").write_text(ftparchive("packages", "pool", cwd=folder))
        options = {"Suite": suite, "Codename": suite, "Components": "stable", "Architectures": "amd64"}
        fields = [
            word for name, value in options.items() for word in ("-o", f"APT::FTPArchive::Release::{name}={value}")
        ]
        release = ftparchive(*fields, "release", ".", cwd=index)
        index.joinpath("Release").write_text(release)
        _gpg(home, "--clearsign", "--output", str(index / "InRelease"), str(index / "Release"))
        with serve(folder) as port:
            yield AptRepository(folder, key, fingerprint, port)
    finally:
        remove_key(home)


def main() -> None:
    folder = Path(sys.argv[1])
    with apt_repository(folder, port=int(sys.argv[2]) if len(sys.argv) > 2 else 0) as repository:
        print(repository.url(), repository.fingerprint, folder / "Release.key", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
