# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sources and settings of the role container_runtime, in root trees with the real containerd.

Upstream's archives cannot be had here: their stand-ins hold the distribution's containerd, packed as upstream packs it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib
from ansible_collections.goldsmith.images.tests.support import apt_repository, root_tree

ROLE = "goldsmith.images.container_runtime"

pytestmark = pytest.mark.skipif(bool(root_tree.missing()), reason=root_tree.missing())


@pytest.fixture(scope="module")
def with_containerd(tmp_path_factory: pytest.TempPathFactory, ansible_env: dict[str, str]) -> root_tree.RootTree:
    """A tree in which the role has run with its defaults."""
    tree = root_tree.pristine(tmp_path_factory).copy(tmp_path_factory.mktemp("with_containerd") / "tree")
    played = tree.play([ROLE], ansible_env)
    assert played.code == 0, played.output
    return tree


def effective(tree: root_tree.RootTree) -> dict[str, Any]:
    return tomllib.loads(tree.run("env", "PATH=/usr/local/bin:/usr/bin", "containerd", "config", "dump"))


def cri_of(config: dict[str, Any]) -> dict[str, Any]:
    """What matters, wherever this version has it."""
    plugins = config["plugins"]
    if config["version"] == 2:
        section = plugins["io.containerd.grpc.v1.cri"]
        return {**section, "sandbox": section["sandbox_image"]}
    images = plugins["io.containerd.cri.v1.images"]
    section = plugins["io.containerd.cri.v1.runtime"]
    return {**section, "registry": images["registry"], "sandbox": images["pinned_images"]["sandbox"]}


REGISTRIES = [
    {
        "name": "docker.io",
        "server": "https://registry-1.docker.io",
        "mirrors": [
            {"url": "https://one.example.org", "ca": "-----BEGIN CERTIFICATE-----\n...\n"},
            {"url": "https://two.example.org/v2/hub", "override_path": True, "capabilities": ["pull"]},
        ],
    },
    {"name": "_default", "mirrors": [{"url": "http://10.0.0.1:5000", "skip_verify": True}]},
]


@pytest.mark.slow_matrix
def test_runtime_registries_and_proxy(
    with_containerd: root_tree.RootTree, ansible_env: dict[str, str], tmp_path: Path
) -> None:
    tree = with_containerd.copy(tmp_path / "tree")
    settings = {
        "container_runtime_runtime": "crun",
        "container_runtime_registries": REGISTRIES,
        "container_runtime_https_proxy": "http://user:p%40ss@proxy.example.org:3128",
        "container_runtime_no_proxy": ["10.96.0.0/12", ".example.org"],
        "container_runtime_sandbox_image": "registry.example.org/pause:3.10.2",
        "container_runtime_cni_conf_dir": "/etc/cni/other.d",
    }
    first = tree.play([ROLE], ansible_env, "--diff", **settings)
    assert first.code == 0, first.output
    assert "p%40ss" not in first.output
    cri = cri_of(effective(tree))
    assert cri["containerd"]["default_runtime_name"] == "crun"
    crun = cri["containerd"]["runtimes"]["crun"]
    assert crun["options"]["BinaryName"] == "crun"
    assert crun["options"]["SystemdCgroup"] is True
    assert tree.run("sh", "-c", "command -v crun").strip() == "/usr/bin/crun"
    assert cri["sandbox"] == "registry.example.org/pause:3.10.2"
    assert cri["cni"]["conf_dir"] == "/etc/cni/other.d"

    folder = tree.path / cri["registry"]["config_path"].lstrip("/")
    hub = tomllib.loads((folder / "docker.io/hosts.toml").read_text())
    assert hub["server"] == "https://registry-1.docker.io"
    assert list(hub["host"]) == ["https://one.example.org", "https://two.example.org/v2/hub"]
    one, two = hub["host"].values()
    assert one == {"capabilities": ["pull", "resolve"], "ca": "/etc/containerd/certs.d/docker.io/mirror-1.crt"}
    assert two == {"capabilities": ["pull"], "override_path": True}
    assert (tree.path / one["ca"].lstrip("/")).read_text() == REGISTRIES[0]["mirrors"][0]["ca"]  # type: ignore[index]
    default = tomllib.loads((folder / "_default/hosts.toml").read_text())
    assert default["host"]["http://10.0.0.1:5000"]["skip_verify"] is True

    drop_in = tree.path / "etc/systemd/system/containerd.service.d/50-proxy.conf"
    assert drop_in.stat().st_mode & 0o777 == 0o600
    assert 'Environment="HTTPS_PROXY=http://user:p%%40ss@proxy.example.org:3128"\n' in drop_in.read_text()
    assert 'Environment="NO_PROXY=10.96.0.0/12,.example.org"\n' in drop_in.read_text()
    assert "HTTP_PROXY" not in drop_in.read_text().replace("HTTPS_PROXY", "")

    again = tree.play([ROLE], ansible_env, **settings)
    assert again.recap["changed"] == 0, again.output
    without = tree.play(
        [ROLE], ansible_env, **{**settings, "container_runtime_https_proxy": ""} | {"container_runtime_no_proxy": []}
    )
    assert without.code == 0, without.output
    assert not drop_in.exists()


def test_images_are_refused_on_a_root_tree(with_containerd: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    played = with_containerd.play([ROLE], ansible_env, container_runtime_images=["registry.example.org/pause:3.10.2"])
    assert played.code != 0
    assert "build_method=vm" in played.output
    assert played.recap["changed"] == 0


# containerd in name spaces of its own, with an empty store: the arguments of each line go to the role's script.
RUN_IMAGES = """\
set -eu
mount --make-rprivate /
for folder in run tmp var/lib/containerd; do
    mkdir -p "$1/$folder"
    mount -t tmpfs tmpfs "$1/$folder"
done
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount --rbind /dev "$1/dev"
cp "$2" "$1/tmp/images.sh"
cp "$3" "$1/tmp/image.tar"
exec chroot "$1" sh -c '
    printf "version = 2\\ndisabled_plugins = [\\"io.containerd.grpc.v1.cri\\"]\\n" >/tmp/config.toml
    containerd --config /tmp/config.toml 2>/tmp/log &
    until ctr version >/dev/null 2>&1; do kill -0 $! && sleep 0.1; done
    export HOSTS_DIR=/etc/containerd/certs.d
    while read -r title look pin arguments; do
        echo "@ $title"
        LOOK_ONLY=${look#no} PIN=${pin#no} sh -s -- $arguments </tmp/images.sh 2>&1 || echo "exit $?"
    done
    ctr --namespace k8s.io images ls
    kill $!
'
"""


def docker_archive(path: Path) -> None:
    """An image with two names, as `docker save` writes it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("hello"))
    diff_id = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    manifest = [{"Config": "config.json", "RepoTags": ["goldsmith.test/one:check", "two:1"], "Layers": ["layer.tar"]}]
    files = {"layer.tar": layer.getvalue(), "config.json": json.dumps(config).encode()}
    with tarfile.open(path, "w") as archive:
        for name, content in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_images_are_imported_and_pinned_once(with_containerd: root_tree.RootTree, tmp_path: Path) -> None:
    docker_archive(tmp_path / "image.tar")
    script = Path(__file__).parents[2] / "roles/container_runtime/files/images.sh"
    lines = [
        "look yes yes pull=busybox import=/tmp/image.tar",
        "unpinned no no import=/tmp/image.tar",
        "unpinned_again no no import=/tmp/image.tar",
        "look_again yes yes import=/tmp/image.tar pull=two:1",
        "pinned no yes import=/tmp/image.tar",
        "pinned_again no yes import=/tmp/image.tar",
        "present no yes pull=two:1 pull=goldsmith.test/one:check",
        # The end of the name of an image is another image.
        "settled yes yes import=/tmp/image.tar pull=two:1 pull=mith.test/one:check",
        "missing no yes import=/nowhere.tar",
    ]
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", RUN_IMAGES, "sh"]
    done = subprocess.run(
        [*enter, str(with_containerd.path), str(script), str(tmp_path / "image.tar")],
        input="\n".join(lines) + "\n",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    answers = {part.split()[0]: part for part in done.stdout.split("@ ")[1:]}
    assert list(answers) == [line.split()[0] for line in lines], done.stdout + done.stderr
    both = ["docker.io/library/two:1", "goldsmith.test/one:check"]
    changed = {name: sorted(re.findall(r"(?m)^changed (\S+)$", answer)) for name, answer in answers.items()}
    assert changed == {
        "look": ["docker.io/library/busybox:latest", *both],
        "unpinned": both,
        "unpinned_again": [],
        "look_again": ["docker.io/library/two:1", *both],
        "pinned": both,
        "pinned_again": [],
        "present": [],
        "settled": ["mith.test/one:check"],
        "missing": [],
    }
    assert "there is no such archive" in answers["missing"]
    assert "exit 2" in answers["missing"]
    assert done.stdout.count("io.cri-containerd.pinned=pinned") == 2, done.stdout


def pack(path: Path, members: dict[str, Path | bytes]) -> str:
    """A .tar.gz of programs; its digest."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def archives(
    with_containerd: root_tree.RootTree, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("archives")
    programs = with_containerd.path / "usr/bin"
    names = ("containerd", "containerd-shim-runc-v2", "ctr")
    runtime = folder / "runc.amd64"
    runtime.write_bytes((with_containerd.path / "usr/sbin/runc").read_bytes())
    digests = {
        "containerd": (
            "containerd.tar.gz",
            pack(folder / "containerd.tar.gz", {f"bin/{name}": programs / name for name in names}),
        ),
        "cni_plugins": (
            "cni.tgz",
            pack(folder / "cni.tgz", {"./loopback": with_containerd.path / "usr/lib/cni/loopback"}),
        ),
        "crictl": ("crictl.tar.gz", pack(folder / "crictl.tar.gz", {"crictl": b"#!/bin/sh\necho crictl\n"})),
        "runtime": ("runc.amd64", hashlib.sha256(runtime.read_bytes()).hexdigest()),
    }
    with apt_repository.serve(folder) as port:
        yield {
            kind: {"url": f"http://127.0.0.1:{port}/{name}", "sha256": digest}
            for kind, (name, digest) in digests.items()
        }


@pytest.mark.slow_matrix
def test_upstream_archives(
    tmp_path_factory: pytest.TempPathFactory,
    archives: dict[str, dict[str, str]],
    ansible_env: dict[str, str],
    tmp_path: Path,
) -> None:
    tree = root_tree.pristine(tmp_path_factory).copy(tmp_path / "tree")
    settings = {"container_runtime_source": "upstream", "container_runtime_archives": archives}
    wrong = {**archives, "runtime": {**archives["runtime"], "sha256": "0" * 64}}
    refused = tree.play([ROLE], ansible_env, container_runtime_source="upstream", container_runtime_archives=wrong)
    assert refused.code != 0
    assert "checksum" in refused.output
    assert not (tree.path / "usr/local/bin/containerd").exists()
    assert not list((tree.path / "tmp").glob("*goldsmith*"))

    check = tree.play([ROLE], ansible_env, "--check", **settings)
    assert check.code == 0, check.output
    assert archives["containerd"]["url"] in check.output
    assert not (tree.path / "usr/local/bin/containerd").exists()

    first = tree.play([ROLE], ansible_env, **settings)
    assert first.code == 0, first.output
    for program in ("bin/containerd", "bin/ctr", "sbin/runc", "bin/crictl"):
        assert os.access(tree.path / "usr/local" / program, os.X_OK), program
    assert (tree.path / "opt/cni/bin/loopback").is_file()
    assert not (tree.path / "usr/bin/containerd").exists()
    assert cri_of(effective(tree))["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is True
    assert tree.run("systemctl", "is-enabled", "containerd.service").strip() == "enabled"
    tree.run("systemd-analyze", "verify", "--man=no", "/usr/local/lib/systemd/system/containerd.service")
    second = tree.play([ROLE], ansible_env, **settings)
    assert second.recap["changed"] == 0, second.output
    lacking = {name: archive for name, archive in archives.items() if name != "containerd"}
    played = tree.play([ROLE], ansible_env, container_runtime_source="upstream", container_runtime_archives=lacking)
    assert "at least 'containerd'" in " ".join(played.output.split())


@pytest.mark.skipif(bool(apt_repository.missing_tools()), reason=f"not installed: {apt_repository.missing_tools()}")
@pytest.mark.slow_matrix
def test_the_docker_repository(
    with_containerd: root_tree.RootTree, ansible_env: dict[str, str], tmp_path: Path
) -> None:
    """A signed stand-in of it with a containerd.io that holds the distribution's programs."""
    tree = root_tree.RootTree(with_containerd.path).copy(tmp_path / "tree")
    package = tmp_path / "package"
    for name in ("containerd", "containerd-shim-runc-v2", "ctr"):
        target = package / "usr/bin" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tree.path / "usr/bin" / name).read_bytes())
        target.chmod(0o755)
    (package / "usr/bin/runc").write_bytes((tree.path / "usr/sbin/runc").read_bytes())
    (package / "usr/bin/runc").chmod(0o755)
    unit = package / "usr/lib/systemd/system/containerd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text((tree.path / "usr/lib/systemd/system/containerd.service").read_text())
    config = package / "etc/containerd/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('disabled_plugins = ["cri"]\n')
    with apt_repository.signed_suite(tmp_path / "docker", "trixie", {"containerd.io": package}) as repository:
        settings = {
            "container_runtime_source": "docker",
            "container_runtime_repository_url": repository.url().rstrip("/"),
            "container_runtime_repository_key": repository.key,
            "container_runtime_repository_key_fingerprints": [repository.fingerprint],
        }
        refused = tree.play(
            [ROLE], ansible_env, **{**settings, "container_runtime_repository_key_fingerprints": ["00"]}
        )
        assert refused.code != 0
        assert repository.fingerprint in refused.output
        assert not (tree.path / "etc/apt/keyrings/docker.asc").exists()
        first = tree.play([ROLE], ansible_env, **settings)
        assert first.code == 0, first.output
        assert tree.run("dpkg-query", "--show", "--showformat=${Status}", "containerd.io") == "install ok installed"
        config_now = effective(tree)
        assert "cri" not in config_now.get("disabled_plugins", [])
        assert cri_of(config_now)["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is True
        second = tree.play([ROLE], ansible_env, **settings)
        assert second.recap["changed"] == 0, second.output


@pytest.mark.slow_matrix
@pytest.mark.parametrize(("suite", "version"), [("bookworm", 2), ("trixie", 2), ("forky", 3)])
def test_every_release_reads_what_the_role_writes(
    tmp_path_factory: pytest.TempPathFactory, ansible_env: dict[str, str], tmp_path: Path, suite: str, version: int
) -> None:
    tree = root_tree.pristine(tmp_path_factory, suite).copy(tmp_path / "tree")
    played = tree.play([ROLE], ansible_env)
    assert played.code == 0, played.output
    config = effective(tree)
    assert config["version"] >= version
    cri = cri_of(config)
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is True
    assert (cri["cni"].get("bin_dirs") or [cri["cni"]["bin_dir"]])[0] == "/opt/cni/bin"
    assert cri["sandbox"] == "registry.k8s.io/pause:3.10.2"
    assert cri["registry"]["config_path"] == "/etc/containerd/certs.d"
