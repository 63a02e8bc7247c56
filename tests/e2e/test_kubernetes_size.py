# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The default image with kubeadm, kubelet and kubectl in it passes all its checks, and its size is in the budget."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support import apt_repository

CHECKOUT = Path(__file__).resolve().parents[2]
ROLE = "kubernetes_prerequisites"
BUDGET = 500 * 10**6
DEADLINE = 3600


def own_address() -> str:
    """Return an address of this machine that its guests reach, too: loopback is another one in there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent; the address is one that documentation is written with.
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[apt_repository.AptRepository]:
    packer = shutil.which("packer")
    assert packer, "the payload is cut from Packer"
    payloads = apt_repository.real_sizes(Path(packer).resolve())
    options = {"versions": ["1.36.2-1.1"], "address": own_address(), "payloads": payloads}
    with apt_repository.apt_repository(tmp_path / "repository", **options) as served:
        yield served


@pytest.mark.slow_matrix
@pytest.mark.skipif(bool(apt_repository.missing_tools()), reason=f"not installed: {apt_repository.missing_tools()}")
def test_the_image_with_kubernetes_packages_of_real_size(
    play, repository: apt_repository.AptRepository, record_property, tmp_path: Path
):
    """Stands in for upstream's repository, which tests do not depend on: it may be out of reach, and it changes.

    The stand-ins have the names and dependencies of upstream's packages, and their sizes, installed and packed. They
    are filled from a real Go program: the budget is one of compressed bytes, so zeros or noise would tell nothing.
    """
    definition = yaml.safe_load((CHECKOUT / "playbooks/images/cloud_base.yml").read_text())
    definition["name"] = "cloud_base_kubernetes"
    definition["vars"] |= {
        f"{ROLE}_repository_url": repository.url(own_address()),
        f"{ROLE}_repository_key": repository.key,
        f"{ROLE}_repository_key_fingerprints": [repository.fingerprint],
    }
    # Not the budget of the definition: this test says what was measured.
    definition["budgets"] = {}
    path = tmp_path / "cloud_base_kubernetes.yml"
    path.write_text(yaml.safe_dump(definition))
    built = play(
        "playbooks/build-image.yml",
        *("-e", f"image={path}", "-e", f"image_output={tmp_path}/output", "-e", "kubernetes_packages=mirror"),
    )
    assert built.wait(DEADLINE) == 0, built.output[-12000:]

    output = tmp_path / "output" / definition["name"]
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["verification"]["passed"] is True
    assert manifest["plan"]["kubernetes"]["source"] == "mirror"
    packages = {package["name"]: package["version"] for package in manifest["packages"]}
    assert {packages[name] for name in apt_repository.REAL_SIZES} == {"1.36.2-1.1"}
    size = (output / f"{definition['name']}.qcow2").stat().st_size
    record_property("size", size)
    assert size <= BUDGET, f"{size / 1e6:.1f} MB"
