# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both build methods make the same image, and the one without a machine makes it twice the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support import canaries, disk_tree

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = "playbooks/build-image.yml"
CLOUD_BASE = yaml.safe_load((CHECKOUT / "playbooks/images/cloud_base.yml").read_text())
DECLARED = yaml.safe_load((CHECKOUT / "docs/build_method_differences.yml").read_text())["differences"]
HOUR = 3600

pytestmark = [
    pytest.mark.slow_matrix,
    pytest.mark.skipif(os.geteuid() != 0, reason="a disk is mounted to read it, which needs root"),
]


def build(play, definition, cache: Path, output: Path, *arguments: str, environment: Any = None, **keys: Any) -> Any:
    path = definition(**{**CLOUD_BASE, **keys})
    return play(
        BUILD, "-e", f"image={path}", "-e", f"image_output={output}", "-e", f"image_cache={cache}",
        "-e", "kubernetes_packages=distribution", *arguments, environment=environment,
    )  # fmt: skip


@pytest.fixture
def planted() -> dict[str, str]:
    return canaries.make()


@pytest.fixture
def with_planting_role(tmp_path: Path, planted: dict[str, str]) -> dict[str, str]:
    """The environment with a collection whose role plants the canaries."""
    role = tmp_path / "collections/ansible_collections/acme/canaries/roles/plant"
    (role / "tasks").mkdir(parents=True)
    (role / "files").mkdir()
    (role / "files/plant.sh").write_text(canaries.script(planted))
    (role / "tasks/main.yml").write_text("- ansible.builtin.script: plant.sh\n")
    paths = [str(tmp_path / "collections"), str(CHECKOUT / ".venv/collections")]
    return {"ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def cache(built: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own that shares the base disks with the default one."""
    cache = tmp_path_factory.mktemp("methods")
    (cache / "base_disks").symlink_to(Path("~/.cache/goldsmith-images/base_disks").expanduser())
    return cache


def packages(status: str) -> dict[str, str]:
    stanzas = [dict(re.findall(r"^(Package|Version): (.+)$", text, re.MULTILINE)) for text in status.split("\n\n")]
    return {stanza["Package"]: stanza["Version"] for stanza in stanzas if stanza}


def declared(path: str) -> bool:
    return any(re.fullmatch(entry["path"], path) for entry in DECLARED)


def test_both_methods_make_the_same_image_and_leave_no_secret_in_it(
    play, definition, cache: Path, planted: dict[str, str], with_planting_role: dict[str, str], tmp_path: Path
):
    found = {}
    roles = [*CLOUD_BASE["roles"], "acme.canaries.plant"]
    for method in ("vm", "rootfs"):
        keys = {"build_method": method, "name": f"by_{method}", "roles": roles, "budgets": {"size": "1MB"}}
        done = build(play, definition, cache, tmp_path, environment=with_planting_role, **keys)
        assert done.wait(HOUR) == 2, done.output
        assert "its budget is 1MB" in " ".join(done.output.split()), done.output[-6000:]
        [image] = cache.glob(f"work/by_{method}-*/*/disk/*.qcow2")
        assert canaries.found_in(image, planted) == set()
        found[method] = disk_tree.read(image)
        found[f"{method} packages"] = packages(disk_tree.read_file(image, "var/lib/dpkg/status"))
    assert found["vm packages"] == found["rootfs packages"]
    vm, rootfs = found["vm"], found["rootfs"]
    assert len(vm) > 10000
    differing = sorted(path for path in {*vm, *rootfs} if vm.get(path) != rootfs.get(path))
    surprises = [
        f"{path}\n  vm      {vm.get(path)}\n  rootfs  {rootfs.get(path)}" for path in differing if not declared(path)
    ]
    assert not surprises, "\n".join(surprises)
    unneeded = [entry["path"] for entry in DECLARED if not any(re.fullmatch(entry["path"], path) for path in differing)]
    assert not unneeded, f"declared, but equal: {unneeded}"


def test_a_second_build_is_the_same_and_the_manifest_says_so(play, definition, tmp_path: Path):
    output = tmp_path / "output"
    done = build(
        play, definition, tmp_path / "cache", output, "-e", "image_prove_reproducible=true",
        name="twice", build_method="rootfs", checks=["identity"],
    )  # fmt: skip
    assert done.wait(HOUR) == 0, done.output[-8000:]
    manifest = json.loads((output / "twice/manifest.json").read_text())
    assert manifest["reproducible"] is True, done.output[-8000:]
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["root_tree"]["tree_sha256"])


def test_an_image_upon_the_disk_of_another_image(play, definition, served_disk, built: str, tmp_path: Path):
    base = {**served_disk(CHECKOUT / "output/cloud_base/cloud_base.qcow2"), "distribution": "debian"}
    output = tmp_path / "output"
    done = build(
        play, definition, tmp_path / "cache", output,
        name="upon", base=base, roles=["node_exporter"], vars={"node_exporter_listen_address": "127.0.0.1:9100"},
        checks=["identity", "hygiene"],
    )  # fmt: skip
    assert done.wait(HOUR) == 0, done.output[-8000:]
    manifest = json.loads((output / "upon/manifest.json").read_text())
    assert (
        manifest["plan"]["build_method"]["name"]
        == json.loads((CHECKOUT / "output/cloud_base/manifest.json").read_text())["plan"]["build_method"]["name"]
    )
    assert manifest["verification"]["passed"] is True
    files = disk_tree.read(output / "upon/upon.qcow2")
    assert "etc/containerd/config.toml" in files


def test_reproducibility_cannot_be_claimed_for_a_machine(play, definition, cache: Path, tmp_path: Path):
    done = build(play, definition, cache, tmp_path, "-e", "image_prove_reproducible=true", build_method="vm")
    assert done.wait(HOUR) == 2
    assert "image_prove_reproducible needs build_method=rootfs" in " ".join(done.output.split())


def test_the_image_boots_with_uefi(play, built: str, tmp_path: Path):
    image = CHECKOUT / "output/cloud_base/cloud_base.qcow2"
    manifest = json.loads(image.with_name("manifest.json").read_text())
    done = play(
        "playbooks/verify_image.yml", "-e", f"verify_image_path={image}",
        "-e", f"verify_image_work_dir={tmp_path}/verify", "-e", json.dumps({
            "verify_image_firmware": "uefi",
            "verify_image_accelerator": manifest["plan"]["accelerator"]["name"],
            "verify_image_cpu_model": manifest["plan"]["accelerator"]["cpu_model"],
        }),
    )  # fmt: skip
    assert done.wait(HOUR) == 0, done.output[-8000:]
    assert subprocess.run(["sha256sum", str(image)], check=True, capture_output=True, text=True).stdout.startswith(
        manifest["image"]["sha256"]
    )
