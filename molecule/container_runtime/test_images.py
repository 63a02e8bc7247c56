# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image of a registry that does not exist has come from its mirror, over TLS, and the kubelet keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testinfra.host import Host

IMAGE = "registry.example.org/probe:1"


def test_image_was_pulled_from_the_mirror_and_pinned(host: Host) -> None:
    lines = host.check_output("ctr --namespace k8s.io images ls").splitlines()
    [image] = [line for line in lines if line.startswith(f"{IMAGE} ")]
    assert "io.cri-containerd.pinned=pinned" in image


def test_certificate_was_needed(host: Host) -> None:
    """With no hosts.toml the same pull fails: neither is the registry there, nor its mirror's certificate trusted."""
    without = host.run("ctr --namespace test images pull --hosts-dir /nonexistent %s", IMAGE)
    assert without.rc != 0
    unknown = host.run("python3 -c %s", "import urllib.request as u; u.urlopen('https://localhost:5443/v2/')")
    assert "certificate verify failed" in unknown.stderr
