# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role kubernetes_prerequisites with a repository: a real apt in a root tree, a signed repository on loopback."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _node_files
from ansible_collections.goldsmith.images.tests.support import apt_repository, root_tree

ROLE = "goldsmith.images.kubernetes_prerequisites"

pytestmark = [
    pytest.mark.skipif(bool(root_tree.missing()), reason=root_tree.missing()),
    pytest.mark.skipif(bool(apt_repository.missing_tools()), reason=f"not installed: {apt_repository.missing_tools()}"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apt_repository.AptRepository]:
    with apt_repository.apt_repository(tmp_path_factory.mktemp("repository")) as served:
        yield served


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> root_tree.RootTree:
    return root_tree.pristine(tmp_path_factory)


@pytest.fixture
def tree(pristine: root_tree.RootTree, tmp_path: Path) -> root_tree.RootTree:
    return pristine.copy(tmp_path / "tree")


def variables(repository: apt_repository.AptRepository, **more: Any) -> dict[str, Any]:
    return {
        "kubernetes_prerequisites_packages_source": "mirror",
        "kubernetes_prerequisites_repository_url": repository.url(),
        "kubernetes_prerequisites_repository_key": repository.key,
        "kubernetes_prerequisites_repository_key_fingerprints": [repository.fingerprint],
        # The distribution's packages are none of this test's business, and take their time.
        "kubernetes_prerequisites_packages": ["kmod"],
        **more,
    }


def versions(tree: root_tree.RootTree) -> dict[str, str]:
    output = tree.run("dpkg-query", "--show", "--showformat=${Package} ${Version}\n", "kube*", "cri-tools", check=False)
    return dict(line.split() for line in output.splitlines() if len(line.split()) == 2)


def test_from_a_mirror(
    tree: root_tree.RootTree, repository: apt_repository.AptRepository, ansible_env: dict[str, str]
) -> None:
    settings = variables(repository)
    # As the role container_runtime leaves it; the package kubernetes-cni brings its own plugin of this name.
    loopback = tree.path / "opt/cni/bin/loopback"
    loopback.parent.mkdir(parents=True)
    loopback.symlink_to("/usr/lib/cni/loopback")
    (tree.path / "etc/fstab").write_text("LABEL=root / ext4 defaults 0 1\n/swapfile none swap sw 0 0\n")

    first_look = tree.play([ROLE], ansible_env, "--check", "--diff", **settings)
    assert first_look.code == 0, first_look.output
    assert "kubeadm kubelet kubectl" in first_look.output
    assert not (tree.path / "etc/apt/sources.list.d/kubernetes.sources").exists()

    first = tree.play([ROLE], ansible_env, **settings)
    assert first.code == 0, first.output
    # The newest patch release of the minor version that was asked for, not the newest of all.
    expected = dict.fromkeys(["kubeadm", "kubelet", "kubectl"], "1.36.2-1.1")
    assert {name: version for name, version in versions(tree).items() if name in expected} == expected
    assert tree.run("apt-mark", "showhold").split() == ["kubeadm", "kubectl", "kubelet"]
    assert tree.run("systemctl", "is-enabled", "kubelet.service").strip() == "enabled"
    keyring = tree.path / "etc/apt/keyrings/kubernetes.asc"
    assert keyring.read_text() == repository.key
    source = (tree.path / "etc/apt/sources.list.d/kubernetes.sources").read_text()
    assert f"URIs: {repository.url()}\n" in source
    assert "Signed-By: /etc/apt/keyrings/kubernetes.asc\n" in source
    assert not loopback.is_symlink()
    assert "kubernetes-cni" in loopback.read_text()
    assert "\n/swapfile" not in (tree.path / "etc/fstab").read_text()

    second = tree.play([ROLE], ansible_env, **settings)
    assert second.code == 0, second.output
    assert second.recap["changed"] == 0, second.output


def test_an_exact_version_and_then_a_newer_one(
    tree: root_tree.RootTree, repository: apt_repository.AptRepository, ansible_env: dict[str, str]
) -> None:
    for version in ("1.36.1-1.1", "1.36.2-1.1"):
        # The key is fetched this time.
        settings = variables(
            repository,
            kubernetes_prerequisites_package_version=version,
            kubernetes_prerequisites_repository_key="",
        )
        played = tree.play([ROLE], ansible_env, **settings)
        assert played.code == 0, played.output
        assert versions(tree)["kubelet"] == versions(tree)["kubeadm"] == version
    assert tree.run("apt-mark", "showhold").split() == ["kubeadm", "kubectl", "kubelet"]


def test_from_a_folder_without_a_network(
    tree: root_tree.RootTree, repository: apt_repository.AptRepository, ansible_env: dict[str, str]
) -> None:
    folder = tree.path / "srv/packages"
    folder.mkdir(parents=True)
    for deb in repository.folder.glob("*_1.36.*.deb"):
        shutil.copy(deb, folder)
    # There is no mirror to fall back to.
    for source in (tree.path / "etc/apt/sources.list.d").glob("*"):
        source.unlink()
    (tree.path / "etc/apt/sources.list").unlink(missing_ok=True)
    settings = {
        "kubernetes_prerequisites_packages_source": "files",
        "kubernetes_prerequisites_packages_dir": "/srv/packages",
        "kubernetes_prerequisites_packages": ["kmod"],
    }
    two = tree.play([ROLE], ansible_env, **settings)
    assert two.code != 0
    assert "has 2 files of kubeadm 1.36.*, one is wanted" in " ".join(two.output.split()), two.output
    for deb in folder.glob("*_1.36.1-*.deb"):
        deb.unlink()

    look = tree.play([ROLE], ansible_env, "--check", **settings)
    assert look.code == 0, look.output
    assert "kubelet" not in versions(tree)
    first = tree.play([ROLE], ansible_env, **settings)
    assert first.code == 0, first.output
    names = ["kubeadm", "kubelet", "kubectl", "kubernetes-cni", "cri-tools"]
    assert {name: versions(tree).get(name) for name in names} == dict.fromkeys(names, "1.36.2-1.1")
    assert tree.run("apt-mark", "showhold").split() == ["kubeadm", "kubectl", "kubelet"]
    assert tree.run("systemctl", "is-enabled", "kubelet.service").strip() == "enabled"
    # The last task tells what kubeadm would say of it.
    show = {"ansible.builtin.debug": {"var": "kubernetes_prerequisites_preflight_checks"}}
    second = tree.play([ROLE, show], ansible_env, **settings)
    assert second.recap["changed"] == 0, second.output
    assert "kubelet 1.36.2" in second.output
    assert "zz-kubernetes.conf sets net.ipv4.ip_forward to 1 at boot" in " ".join(second.output.split())


# It is never content.
KUBEADM = """\
#!/bin/sh
case "$*" in
*version*) echo v1.36.2; exit ;;
init*preflight*--config=/dev/stdin*) cat >/asked; echo "$*" >>/asked ;;
esac
echo "[ERROR Made-Up]: nobody else would have found it" >&2
exit 1
"""


@pytest.mark.parametrize("kubeadm", [True, False])
def test_kubeadm_is_asked_wherever_it_is_installed(
    tree: root_tree.RootTree, ansible_env: dict[str, str], kubeadm: bool
) -> None:
    """No package of it, no version that was asked for; the fact makes a running system of the tree."""
    if kubeadm:
        (tree.path / "usr/bin/kubeadm").write_text(KUBEADM)
        (tree.path / "usr/bin/kubeadm").chmod(0o755)
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.set_fact": {"is_chroot": False, "cacheable": True}},
        {"ansible.builtin.include_role": {"name": ROLE, "tasks_from": "preflight.yml"}},
        {"ansible.builtin.debug": {"msg": "{{ kubernetes_prerequisites_preflight_checks | last }}"}},
    ]
    settings = {"kubernetes_prerequisites_packages_source": "none"}
    reported = tree.play(tasks, ansible_env, **settings)
    assert reported.code == 0, reported.output
    assert reported.output.count("[ERROR Made-Up]: nobody else") == (2 if kubeadm else 0), reported.output
    if not kubeadm:
        return
    asked = (tree.path / "asked").read_text()
    assert "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.36.2\n" in asked
    assert "--ignore-preflight-errors=NumCPU,Mem,KubeletVersion" in asked

    (tree.path / "usr/bin/kubeadm").write_text(KUBEADM.replace("1.36.2", "1.30.4"))
    # Every error of the module's own is forgiven here, kubeadm's stays.
    ignore = {"kubernetes_prerequisites_preflight": "fail", "kubernetes_prerequisites_preflight_ignore": ["all"]}
    failed = tree.play(tasks, ansible_env, **settings, **ignore)
    assert failed.code != 0
    assert "[ERROR Made-Up]: nobody else" in failed.output
    assert "v1beta3\nkind: ClusterConfiguration\nkubernetesVersion: v1.30.4" in (tree.path / "asked").read_text()


def configuration(tree: root_tree.RootTree) -> dict[str, str]:
    """Every file and link in /etc that a role may have written."""
    found = {}
    for path in sorted((tree.path / "etc").rglob("*")):
        name = str(path.relative_to(tree.path))
        if path.is_symlink():
            found[name] = os.readlink(path)
        # The linker's cache and what dpkg writes with a time in it are nobody's configuration.
        elif path.is_file() and path.name not in ("ld.so.cache", ".updated", "shadow", "shadow-"):
            found[name] = f"{path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return found


def test_both_orders_with_the_hardening_role_are_the_same(
    pristine: root_tree.RootTree, ansible_env: dict[str, str], tmp_path: Path
) -> None:
    settings = {
        "kubernetes_prerequisites_packages_source": "none",
        "kubernetes_prerequisites_packages": ["kmod"],
        "hardening_profile": "kubernetes_node",
        "hardening_sshd_enabled": False,  # there is none in this small tree
    }
    hardening = "goldsmith.images.hardening"
    found = []
    for number, roles in enumerate(([ROLE, hardening], [hardening, ROLE])):
        tree = pristine.copy(tmp_path / str(number))
        # The hardening role wants facts.
        facts = {"ansible.builtin.setup": {"gather_subset": ["!all", "!min", "chroot", "distribution"]}}
        tasks = [{"ansible.builtin.include_role": {"name": role}} for role in roles]
        played = tree.play([facts, *tasks], ansible_env, **settings)
        assert played.code == 0, played.output
        found.append(configuration(tree))
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.default.forwarding", "net.bridge.bridge-nf-call-iptables"):
            value = _node_files.boot_sysctl(str(tree.path), key)
            assert value == ("1", "/etc/sysctl.d/zz-kubernetes.conf"), key
    different = {name for name in found[0] | found[1] if found[0].get(name) != found[1].get(name)}
    assert not different


def test_a_key_that_is_not_expected_is_refused_before_it_is_written(
    tree: root_tree.RootTree, repository: apt_repository.AptRepository, ansible_env: dict[str, str]
) -> None:
    settings = variables(repository)
    # Whose fingerprint is the default: upstream's.
    del settings["kubernetes_prerequisites_repository_key_fingerprints"]
    played = tree.play([ROLE], ansible_env, **settings)
    assert played.code != 0
    assert repository.fingerprint in played.output
    assert "DE15B14486CD377B9E876E1A234654DA9A296436" in played.output
    assert not (tree.path / "etc/apt/keyrings/kubernetes.asc").exists()


def test_a_repository_signed_by_another_key_is_refused(
    tree: root_tree.RootTree, repository: apt_repository.AptRepository, ansible_env: dict[str, str], tmp_path: Path
) -> None:
    with apt_repository.apt_repository(tmp_path / "other", versions=("1.36.2-1.1",)) as other:
        played = tree.play(
            [ROLE], ansible_env, **variables(repository, kubernetes_prerequisites_repository_url=other.url())
        )
    assert played.code != 0
    assert "InRelease" in played.output or "not signed" in played.output, played.output
    assert "kubelet" not in versions(tree)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kubernetes_prerequisites_version": "1.38", "container_runtime_containerd_version": "1.7.24"},
            "2.0 or later",
        ),
        ({"kubernetes_prerequisites_version": "v1.36.2"}, "minor version"),
        ({"kubernetes_prerequisites_package_version": "1.37.0-1.1"}, "is one of it"),
        ({"kubernetes_prerequisites_repository_key": "<html>404</html>"}, "no armored OpenPGP"),
        ({"kubernetes_prerequisites_packages_source": "internet"}, "must be one of"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_touched(
    pristine: root_tree.RootTree,
    repository: apt_repository.AptRepository,
    ansible_env: dict[str, str],
    settings: dict[str, Any],
    message: str,
) -> None:
    played = pristine.play([ROLE], ansible_env, **variables(repository, **settings))
    assert played.code != 0
    assert message in " ".join(played.output.split()), played.output
    assert played.recap["changed"] == 0


def test_a_warning_for_containerd_1_from_1_35_on(
    pristine: root_tree.RootTree, repository: apt_repository.AptRepository, ansible_env: dict[str, str]
) -> None:
    played = pristine.play(
        [ROLE], ansible_env, "--check", **variables(repository, container_runtime_containerd_version="1.7.24")
    )
    assert played.code == 0, played.output
    assert "ContainerRuntimeVersion: containerd 1.7.24 works with Kubernetes 1.36" in " ".join(played.output.split())
