# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Push an image of one empty layer to the machine's registry, over its API."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import ssl
import tarfile
import time
import urllib.request
from urllib.error import URLError

REPOSITORY = "https://localhost:5443/v2/probe"
TRUST = ssl.create_default_context(cafile="/etc/docker/registry/mirror.pem")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def send(method: str, url: str, content: bytes, kind: str) -> str:
    request = urllib.request.Request(url, content, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, context=TRUST, timeout=60) as answer:
        return str(answer.headers.get("Location", ""))


def push(content: bytes, kind: str) -> dict[str, str | int]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    upload = send("POST", f"{REPOSITORY}/blobs/uploads/", b"", kind)
    send("PUT", f"{upload}&digest={digest}", content, "application/octet-stream")
    return {"mediaType": kind, "digest": digest, "size": len(content)}


def wait_for_registry() -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen("https://localhost:5443/v2/", context=TRUST, timeout=60).close()
            return
        except URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def main() -> None:
    wait_for_registry()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w"):
        pass
    layer = push(archive.getvalue(), LAYER)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = push(json.dumps({"architecture": architecture, "os": "linux", "rootfs": rootfs}).encode(), CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    send("PUT", f"{REPOSITORY}/manifests/1", json.dumps(manifest).encode(), MANIFEST)


if __name__ == "__main__":
    main()
