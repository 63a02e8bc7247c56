# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role kubernetes_prerequisites with a repository: a real apt in a root tree, a signed repository on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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
    assert "WARNING: containerd 1.7.24" in played.output
