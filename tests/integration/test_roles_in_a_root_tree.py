# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles and modules against a Debian that is not booted, over the chroot connection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomllib
from ansible_collections.goldsmith.images.tests.support import canaries, root_tree, small_disk

pytestmark = pytest.mark.skipif(bool(root_tree.missing()), reason=root_tree.missing())


@pytest.fixture(params=root_tree.SUITES)
def tree(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> root_tree.RootTree:
    return root_tree.pristine(tmp_path_factory, request.param).copy(tmp_path / "tree")


@pytest.mark.slow_matrix
def test_container_runtime(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    role = "goldsmith.images.container_runtime"
    first_look = tree.play([role], ansible_env, "--check")
    assert first_look.code == 0, first_look.output
    assert not (tree.path / "etc/containerd").exists()

    first = tree.play([role], ansible_env)
    assert first.code == 0, first.output
    effective = tomllib.loads(tree.run("containerd", "config", "dump"))
    cri = effective["plugins"]["io.containerd.grpc.v1.cri"]
    assert effective["version"] == 2
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is True
    assert cri["cni"]["bin_dir"] == "/opt/cni/bin"
    assert cri["sandbox_image"] == "registry.k8s.io/pause:3.10.2"
    assert tree.run("systemctl", "is-enabled", "containerd.service").strip() == "enabled"
    # Every plugin of the package is in the list of links.
    plugins = sorted(path.name for path in (tree.path / "usr/lib/cni").iterdir())
    assert sorted(path.name for path in (tree.path / "opt/cni/bin").iterdir()) == plugins
    assert tree.run("/opt/cni/bin/loopback", check=False) is not None
    assert os.readlink(tree.path / "opt/cni/bin/loopback") == "/usr/lib/cni/loopback"

    # A CNI has brought its own plugin in the meantime.
    portmap = tree.path / "opt/cni/bin/portmap"
    portmap.unlink()
    portmap.write_text("newer")
    second = tree.play([role], ansible_env)
    assert second.code == 0, second.output
    assert second.recap["changed"] == 0, second.output
    assert portmap.read_text() == "newer"

    too_old = tree.play([role], ansible_env, container_runtime_minimum_version="99.0.0")
    assert too_old.code != 0
    assert "older than 99.0.0" in " ".join(too_old.output.split())


@pytest.mark.slow_matrix
@pytest.mark.parametrize("tree", ["trixie"], indirect=True)
def test_container_runtime_with_a_newer_containerd(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    """A daemon of the 2.x series reads what the role writes for it: that of Debian's next release."""
    sources = tree.path / "etc/apt/sources.list"
    [archive] = [line for line in sources.read_text().splitlines() if " trixie " in line]
    # A mirror that is updated now and then has it beyond its date.
    archive = archive.replace("deb ", "deb [check-valid-until=no] ").replace(" trixie ", " sid ")
    (sources.parent / "sources.list.d/sid.list").write_text(f"{archive}\n")
    pin = "Package: *\nPin: release n=sid\nPin-Priority: 100\n"
    (sources.parent / "preferences.d/sid").write_text(pin)
    tree.run("apt-get", "update", "--quiet")
    tree.run("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "containerd/sid", "runc")
    mirror = {"url": "https://mirror.example.org", "ca": "-----BEGIN CERTIFICATE-----\n...\n"}
    settings = {
        "container_runtime_runtime": "crun",
        "container_runtime_https_proxy": "http://proxy.example.org:3128",
        "container_runtime_registries": [{"name": "docker.io", "mirrors": [mirror]}],
    }
    done = tree.play(["goldsmith.images.container_runtime"], ansible_env, **settings)
    assert done.code == 0, done.output
    text = tree.run("containerd", "config", "dump")
    effective = tomllib.loads(text)
    assert effective["version"] >= 3, text
    runtime = effective["plugins"]["io.containerd.cri.v1.runtime"]
    assert runtime["containerd"]["default_runtime_name"] == "crun"
    options = runtime["containerd"]["runtimes"]["crun"]["options"]
    assert (options["BinaryName"], options["SystemdCgroup"]) == ("crun", True)
    assert tree.run("crun", "--version").startswith("crun version")
    assert runtime["cni"]["bin_dirs"] == ["/opt/cni/bin"]
    assert runtime["cni"]["conf_dir"] == "/etc/cni/net.d"
    images = effective["plugins"]["io.containerd.cri.v1.images"]
    assert images["pinned_images"]["sandbox"] == "registry.k8s.io/pause:3.10.2"
    assert images["registry"]["config_path"] == "/etc/containerd/certs.d"
    hosts = tomllib.loads((tree.path / "etc/containerd/certs.d/docker.io/hosts.toml").read_text())
    assert hosts["host"]["https://mirror.example.org"]["ca"] == "/etc/containerd/certs.d/docker.io/mirror-1.crt"
    drop_in = (tree.path / "etc/systemd/system/containerd.service.d/50-proxy.conf").read_text()
    assert 'Environment="HTTPS_PROXY=http://proxy.example.org:3128"\n' in drop_in
    # Read as it is, not migrated from an older version.
    written = tomllib.loads((tree.path / "etc/containerd/config.toml").read_text())
    assert written["version"] == effective["version"]
    assert tree.play(["goldsmith.images.container_runtime"], ansible_env, **settings).recap["changed"] == 0


@pytest.mark.slow_matrix
@pytest.mark.parametrize("tree", ["trixie"], indirect=True)
def test_a_tag_picks_an_area(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    settings = {
        "kubernetes_prerequisites_packages_source": "none",
        "kubernetes_prerequisites_packages": ["socat"],
    }
    roles = [f"goldsmith.images.{name}" for name in ("container_runtime", "kubernetes_prerequisites", "cleanup")]
    secret = tree.path / "root/.netrc"
    secret.touch()
    made = {
        "container_runtime_packages": "usr/bin/containerd",
        "container_runtime_config": "etc/crictl.yaml",
        "kubernetes_prerequisites_kernel": "etc/sysctl.d/zz-kubernetes.conf",
        "kubernetes_prerequisites_swap": "etc/systemd/system/swap.target",
        "kubernetes_prerequisites_packages": "usr/bin/socat",
        "cleanup_units": "etc/systemd/system/goldsmith-host-keys.service",
    }

    def found() -> set[str]:
        return {tag for tag, path in made.items() if os.path.lexists(tree.path / path)}

    for tags in (
        {"container_runtime_images", "kubernetes_prerequisites_preflight", "cleanup_trim"},
        {"container_runtime_packages", "kubernetes_prerequisites_kernel", "cleanup_units"},
        {"kubernetes_prerequisites_swap"},
    ):
        before = found()
        played = tree.play(roles, ansible_env, "--tags", ",".join(tags), **settings)
        assert played.code == 0, played.output
        assert found() == before | tags & set(made)
    assert secret.exists()
    skipped = ["--skip-tags", "container_runtime_packages,cleanup_units"]
    played = tree.play(roles, ansible_env, "--tags", "container_runtime,cleanup_contract", *skipped, **settings)
    assert played.code == 0, played.output
    assert found() == set(made) - {"kubernetes_prerequisites_packages"}
    assert not secret.exists()


def test_units_are_set_without_a_running_systemd(tree: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    task = {
        "goldsmith.images.systemd_units": {
            "enabled": ["systemd-networkd", "getty@tty7"],
            "disabled": ["getty@tty1"],
            "masked": ["swap.target", "not-yet.service"],
            "started": ["systemd-networkd"],
            "default_target": "multi-user.target",
            "offline": True,
        },
        "register": "result",
    }
    show = {"ansible.builtin.debug": {"msg": "skipped: {{ result.skipped_units }}"}}
    predicted = tree.play([task, show], ansible_env, "--check", "--diff")
    assert "+default target: multi-user.target" in predicted.output
    assert tree.run("systemctl", "is-enabled", "systemd-networkd", check=False).strip() == "disabled"

    first = tree.play([task, show], ansible_env)
    assert first.code == 0, first.output
    assert "systemd-networkd.service" in first.output.partition("skipped:")[2]
    units = ["systemd-networkd", "getty@tty7", "getty@tty1", "swap.target", "not-yet.service"]
    states = tree.run("systemctl", "is-enabled", *units, check=False).split()
    assert states == ["enabled", "enabled", "disabled", "masked", "masked"]
    assert tree.run("systemctl", "get-default").strip() == "multi-user.target"
    assert tree.play([task], ansible_env).recap["changed"] == 0

    missing = tree.play([{"goldsmith.images.systemd_units": {"enabled": ["nope"], "offline": True}}], ansible_env)
    assert "no such unit: nope.service" in missing.output
    online = tree.play([{"goldsmith.images.systemd_units": {"enabled": ["systemd-networkd"]}}], ansible_env)
    assert "'offline'" in online.output


@pytest.mark.skipif(bool(small_disk.missing()), reason=small_disk.missing())
def test_cleanup_leaves_no_secret_anywhere_on_the_disk(
    tree: root_tree.RootTree, ansible_env: dict[str, str], run_module: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Secrets in more than 30 places, those of deleted files too: none is in any byte of the finished image."""
    planted = canaries.make()
    assert len(planted) > 30
    (tree.path / "plant.sh").write_text(canaries.script(planted), encoding="utf-8")
    tree.run("sh", "/plant.sh")
    (tree.path / "plant.sh").unlink()
    # The search finds what is there: all but what was deleted before there was a disk.
    dirty = small_disk.make_raw(tree.path, tmp_path / "dirty.raw", size=900)
    assert canaries.found_in(dirty, planted) == set(planted) - set(canaries.DELETED)
    dirty.unlink()

    looked = tree.play(["goldsmith.images.cleanup"], ansible_env, "--check")
    assert looked.code == 0, looked.output
    assert (tree.path / "root/.netrc").exists()
    done = tree.play(["goldsmith.images.cleanup"], ansible_env)
    assert done.code == 0, done.output
    assert re.search(r"paths, \d+\.\d MB freed", " ".join(done.output.split())), done.output
    raw = small_disk.make_raw(tree.path, tmp_path / "clean.raw", size=900)
    image = small_disk.make_qcow2(raw, tmp_path / "clean.qcow2", "zstd")
    assert canaries.found_in(image, planted) == set()
    result = run_module("image_hygiene", path=str(image), secrets=list(planted.values()), fail=True)
    assert not result["failed"], result["msg"]
    # Through a pipe, as in a build: else the module's own file would be something to remove.
    again = tree.play(["goldsmith.images.cleanup"], {**ansible_env, "ANSIBLE_PIPELINING": "true"})
    assert again.recap["changed"] == 0, again.output
