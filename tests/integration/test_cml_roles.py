# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installer and the roles of the CML image in a Debian that is not booted."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import root_tree

ROLE = "goldsmith.images.cml_host"
CHECKOUT = Path(__file__).resolve().parents[2]
INSTALLER = "/usr/local/libexec/goldsmith-images/cml-install"
pytestmark = pytest.mark.skipif(
    bool(root_tree.missing()) or shutil.which("dpkg-deb") is None, reason=root_tree.missing() or "dpkg-deb is missing"
)


CONTROL = """\
Package: {name}
Version: {version}
Architecture: {architecture}
Maintainer: test <test@example.com>
Description: test
"""


def make_package(
    folder: Path, name: str = "cml2", version: str = "2.9.1-7", script: str = "", architecture: str = "all"
) -> Path:
    """A .pkg as CML's are: a tar archive with .debs. The stand-in has no programs in it."""
    source = folder / f"{name}-source"
    (source / "DEBIAN").mkdir(parents=True)
    (source / "DEBIAN/control").write_text(CONTROL.format(name=name, version=version, architecture=architecture))
    if script:
        (source / "DEBIAN/postinst").write_text(f"#!/bin/sh\n{script}\n")
        (source / "DEBIAN/postinst").chmod(0o755)
    inner = folder / f"{name}_{version}_{architecture}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", source, inner], check=True, capture_output=True)
    package = folder / f"{name}_{version}.pkg"
    subprocess.run(["tar", "-C", folder, "-cf", package, inner.name], check=True)
    inner.unlink()
    shutil.rmtree(source)
    return package


def checksum(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def bare(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> root_tree.RootTree:
    """A tree with the installer and a package, and nothing else of the role."""
    tree = root_tree.pristine(tmp_path_factory).copy(tmp_path / "tree")
    program = tree.path / INSTALLER.lstrip("/")
    program.parent.mkdir(parents=True)
    shutil.copy(CHECKOUT / "roles/cml_host/files/install.sh", program)
    program.chmod(0o755)
    provision = tree.path / "provision"
    provision.mkdir()
    provide(tree, make_package(tmp_path))
    return tree


def provide(tree: root_tree.RootTree, package: Path) -> None:
    shutil.copy(package, tree.path / "provision")
    line = f"{checksum(package).removeprefix('sha256:')}  {package.name}\n"
    (tree.path / "provision/SHA256SUMS").write_text(line)


@pytest.fixture(scope="module")
def tree(ansible_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> root_tree.RootTree:
    """The role was applied, with a package from the controller's disk: all of KVM and libvirt, so it takes its time."""
    tree = root_tree.pristine(tmp_path_factory).copy(tmp_path_factory.mktemp("cml") / "tree")
    package = make_package(tmp_path_factory.mktemp("package"))
    variables: dict[str, Any] = {"cml_host_package": str(package), "cml_host_package_checksum": checksum(package)}
    look = tree.play([ROLE], ansible_env, "--check", **variables)
    assert look.code == 0, look.output
    assert not (tree.path / "provision").exists()
    first = tree.play([ROLE], ansible_env, **variables)
    assert first.code == 0, first.output
    second = tree.play([ROLE], ansible_env, **variables)
    assert second.code == 0 and second.recap["changed"] == 0, second.output
    return tree


@pytest.mark.slow_matrix
def test_host_is_prepared(tree: root_tree.RootTree) -> None:
    units = ["libvirtd", "NetworkManager", "cml-network-unpin", "cml-install", "serial-getty@ttyS0"]
    assert tree.run("systemctl", "is-enabled", *units, check=False).split() == ["enabled"] * len(units)
    assert (tree.path / "provision").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tree.path / "provision").iterdir()] == [0o600, 0o600]
    # NetworkManager reads what the role wrote, and takes the values.
    configuration = tree.run("NetworkManager", "--print-config")
    assert re.search(r"\[connection-cml-bridge\]\nmatch-device=type:bridge\nethernet.mtu=1500", configuration)
    assert "unmanaged-devices=*,except:interface-name:bridge*" in configuration
    assert "nested=1" in tree.run("modprobe", "--showconfig")


def test_installer_installs_once(bare: root_tree.RootTree) -> None:
    bare.run(INSTALLER)
    assert bare.run("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}", "cml2").strip() == "ii"
    assert bare.run("dpkg", "--print-foreign-architectures") == ""
    marker = bare.path / "var/lib/goldsmith-images/cml-installed"
    assert marker.read_text() == "cml2\t2.9.1-7\n"
    # A second start does nothing, even when the package is gone.
    shutil.rmtree(bare.path / "provision")
    bare.run(INSTALLER)
    assert not (bare.path / "etc/issue.d/cml-install.issue").exists()


def test_installer_unpacks_on_the_disk(bare: root_tree.RootTree, tmp_path: Path) -> None:
    """/tmp is memory on Debian 13."""
    (tmp_path / "new").mkdir()
    provide(bare, make_package(tmp_path / "new", script="test -e /var/tmp/tmp.*/cml2_*.deb"))
    bare.run(INSTALLER)
    assert list((bare.path / "var/tmp").glob("tmp.*")) == []


def test_installer_adds_the_architecture_of_iol_nodes(bare: root_tree.RootTree, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    provide(bare, make_package(tmp_path / "new", architecture="i386"))
    # Nothing of it comes from a repository, and not every mirror has that architecture.
    shutil.rmtree(bare.path / "etc/apt/sources.list.d")
    (bare.path / "etc/apt/sources.list").write_text("")
    bare.run(INSTALLER)
    assert bare.run("dpkg", "--print-foreign-architectures").split() == ["i386"]


def test_installer_takes_a_single_deb_and_succeeds_after_a_failure(bare: root_tree.RootTree, tmp_path: Path) -> None:
    [package] = (bare.path / "provision").glob("*.pkg")
    subprocess.run(["tar", "-C", tmp_path, "-xf", package], check=True)
    package.unlink()
    assert "there is no .pkg or .deb" in bare.run("sh", "-c", f"{INSTALLER} 2>&1", check=False)
    assert (bare.path / "etc/issue.d/cml-install.issue").exists()
    provide(bare, next(tmp_path.glob("*.deb")))
    bare.run(INSTALLER)
    assert not (bare.path / "etc/issue.d/cml-install.issue").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("changed", "does not match"),
        ("not listed", "has no line for"),
        ("two", "more than one package"),
        ("script", "FAILED (exit status 100)"),
        ("other name", "the package cml2 is not installed"),
        ("empty", "holds no .deb"),
    ],
)
def test_failed_installation_is_loud(bare: root_tree.RootTree, tmp_path: Path, damage: str, message: str) -> None:
    provision = bare.path / "provision"
    [package] = provision.glob("*.pkg")
    if damage == "changed":
        package.write_bytes(package.read_bytes() + b"\0" * 512)
    elif damage == "not listed":
        (provision / "other").write_bytes(b"")
        (provision / "SHA256SUMS").write_text(f"{hashlib.sha256(b'').hexdigest()}  other\n")
    elif damage == "two":
        (provision / "zz.deb").write_bytes(b"")
    else:
        package.unlink()
        (tmp_path / "new").mkdir()
        if damage == "empty":
            new = tmp_path / "new/empty.pkg"
            subprocess.run(["tar", "-cf", new, "-T", "/dev/null"], check=True)
        else:
            changes = {"script": {"script": "exit 3"}, "other name": {"name": "other-name"}}[damage]
            new = make_package(tmp_path / "new", **changes)
        provide(bare, new)
    output = bare.run("sh", "-c", f"{INSTALLER} 2>&1; echo exit $?")
    assert message in output
    assert "NOT installed" in output
    assert not output.rstrip().endswith("exit 0")
    assert "NOT installed" in (bare.path / "etc/issue.d/cml-install.issue").read_text()
    assert not (bare.path / "var/lib/goldsmith-images/cml-installed").exists()
    assert list((bare.path / "var/tmp").glob("tmp.*")) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A package on a web server."""
    package = make_package(tmp_path)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, directory=str(tmp_path), **kwargs)

        def log_message(self, *_args: Any) -> None:
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/{package.name}", package
    found.shutdown()
    found.server_close()


FACTS = {"ansible.builtin.setup": {"gather_subset": ["!all", "!min", "chroot", "distribution"]}}


@pytest.mark.slow_matrix
def test_ssm_agent_from_a_package(
    bare: root_tree.RootTree, ansible_env: dict[str, str], server: tuple[str, Path]
) -> None:
    url, package = server
    (package.parent / "agent").mkdir()
    packed = make_package(package.parent / "agent", name="amazon-ssm-agent")
    subprocess.run(["tar", "-C", package.parent, "-xf", packed], check=True)
    [deb] = package.parent.glob("amazon-ssm-agent*.deb")
    task = {"ansible.builtin.include_role": {"name": ROLE, "tasks_from": "ssm_agent.yml"}}

    def install(wanted: str) -> root_tree.Played:
        address = f"{url.rpartition('/')[0]}/{deb.name}"
        return bare.play([FACTS, task], ansible_env, cml_host_ssm_agent_url=address, cml_host_ssm_agent_checksum=wanted)

    def installed() -> bool:
        return "installed" in bare.run("dpkg-query", "--show", "--showformat=${Status}", deb.name[:16], check=False)

    wrong = install("sha256:" + "0" * 64)
    assert wrong.code != 0 and "checksum" in wrong.output
    assert not installed()
    first = install(checksum(deb))
    assert first.code == 0, first.output
    assert installed()
    assert install(checksum(deb)).recap["changed"] == 0


def on(distribution: str) -> list[Any]:
    """The role on a system that says it is another."""
    fake = {"ansible.builtin.set_fact": {"distribution": distribution, "cacheable": True}}
    return [FACTS, fake, {"ansible.builtin.include_role": {"name": ROLE}}]


@pytest.mark.slow_matrix
def test_ubuntu(bare: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    played = bare.play(on("Ubuntu"), ansible_env, "--check", "--diff")
    assert played.code == 0, played.output
    assert "/etc/netplan/99-cml.yaml" in played.output
    assert "renderer: NetworkManager" in played.output
    assert "50-cml-devices.conf" not in played.output
    agent = bare.play(on("Ubuntu"), ansible_env, "--check", cml_host_ssm_agent=True)
    assert agent.code != 0
    assert "Ubuntu's SSM agent is a snap, which needs a running snapd" in " ".join(agent.output.split())


def test_distribution_that_nobody_knows(bare: root_tree.RootTree, ansible_env: dict[str, str]) -> None:
    played = bare.play(on("Fedora"), ansible_env, "--check")
    assert played.code != 0
    assert "this role knows Ubuntu and Debian, not Fedora" in " ".join(played.output.split())


BRING = {"ansible.builtin.include_role": {"name": ROLE, "tasks_from": "package.yml"}}


def bring(tree: root_tree.RootTree, env: dict[str, str], package: str, wanted: str) -> root_tree.Played:
    return tree.play([BRING], env, cml_host_package=package, cml_host_package_checksum=wanted)


def test_package_from_a_web_server(
    bare: root_tree.RootTree, ansible_env: dict[str, str], server: tuple[str, Path]
) -> None:
    url, package = server
    provision = bare.path / "provision"
    for path in provision.iterdir():
        path.unlink()
    wrong = bring(bare, ansible_env, url, "sha256:" + "0" * 64)
    assert wrong.code != 0 and "checksum" in wrong.output
    assert list(provision.iterdir()) == []
    right = bring(bare, ansible_env, f"{url}?signature=very-secret", checksum(package))
    assert right.code == 0, right.output
    assert (provision / package.name).read_bytes() == package.read_bytes()
    assert "very-secret" not in right.output
    assert bring(bare, ansible_env, url, checksum(package)).recap["changed"] == 0
    bare.run(INSTALLER)


@pytest.mark.slow_matrix
def test_package_from_the_controller(bare: root_tree.RootTree, ansible_env: dict[str, str], tmp_path: Path) -> None:
    package = make_package(tmp_path, version="2.10.0-1")
    for path in (bare.path / "provision").iterdir():
        path.unlink()
    wrong = bring(bare, ansible_env, str(package), "sha256:" + "0" * 64)
    assert wrong.code != 0
    assert f"has {checksum(package)}, expected sha256:000" in " ".join(wrong.output.split())
    missing = bring(bare, ansible_env, "/no/such.pkg", checksum(package))
    assert "/no/such.pkg on the controller does not exist" in " ".join(missing.output.split())
    assert bring(bare, ansible_env, str(package), checksum(package)).code == 0
    assert (bare.path / "provision" / package.name).stat().st_mode & 0o777 == 0o600
    bare.run(INSTALLER)


@pytest.mark.slow_matrix
def test_package_from_s3(bare: root_tree.RootTree, ansible_env: dict[str, str], tmp_path: Path) -> None:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    package = make_package(tmp_path, version="2.10.0-1")
    for path in (bare.path / "provision").iterdir():
        path.unlink()
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "AKIAIOSFODNN7EXAMPLE", "aws_secret_access_key": "not-a-secret"}
        s3 = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
        s3.create_bucket(Bucket="software")
        s3.put_object(Bucket="software", Key="cml/" + package.name, Body=package.read_bytes())
        environment = {**ansible_env, "AWS_URL": url, "AWS_REGION": "us-east-1"}
        environment.update({name.upper(): value for name, value in keys.items()})
        played = bring(bare, environment, f"s3://software/cml/{package.name}", checksum(package))
    finally:
        server.stop()
    assert played.code == 0, played.output
    assert (bare.path / "provision" / package.name).read_bytes() == package.read_bytes()
    assert "Signature" not in played.output
    # Nothing of the controller's credentials is in the image.
    assert "AKIAIOSFODNN7EXAMPLE" not in bare.run(
        "sh", "-c", "grep -rl AKIAIOSFODNN7EXAMPLE /provision /etc /root /var /tmp; true"
    )
    bare.run(INSTALLER)


@pytest.mark.slow_matrix
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"cml_host_package": "https://example.com/cml.pkg"}, "needs cml_host_package_checksum"),
        (
            {"cml_host_package": "https://example.com/cml.iso", "cml_host_package_checksum": "sha256:" + "0" * 64},
            "not the address of a .pkg or .deb",
        ),
        ({"cml_host_package": "/no/such.pkg", "cml_host_package_checksum": "sha256:" + "0" * 64}, "does not exist"),
        ({"cml_host_ssm_agent": True}, "give cml_host_ssm_agent_url"),
    ],
)
def test_what_makes_no_sense(
    tree: root_tree.RootTree, ansible_env: dict[str, str], variables: dict[str, Any], message: str
) -> None:
    played = tree.play([ROLE], ansible_env, "--check", **variables)
    assert played.code != 0
    assert message in " ".join(played.output.split())


ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.goldsmith.images.plugins.module_utils import _cml_gui, _https_client as h
wanted = _cml_gui.Wanted(h.parse_place("https://localhost"), h.Trust(ca_path=sys.argv[2]), ports=[80, 443])
print(json.dumps(_cml_gui.Check(wanted).run()))
"""


def ask_mock(tree: root_tree.RootTree) -> dict[str, Any]:
    """Start what the unit starts, on the real ports of a network namespace, and ask as the build does."""
    unit = (
        (tree.path / "etc/systemd/system/cml-mock-gui.service").read_text().replace("\\\n", " ").replace("%H", "host")
    )
    commands = dict(line.split("=", 1) for line in unit.splitlines() if line.startswith("Exec"))
    run = tree.path / "run/cml-mock-gui"
    run.mkdir(parents=True)
    start = f"{commands['ExecStartPre']}\n{commands['ExecStart'].replace('daemon off;', 'daemon on;')}"
    script = 'ip link set lo up; chroot "$1" sh -ec "$2" >&2; shift 2; "$@"; kill "$(cat "$0/nginx.pid")"'
    code = [sys.executable, "-c", ASK, str(CHECKOUT / ".venv/collections"), str(run / "certificate.pem")]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, str(run), str(tree.path), start, *code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    shutil.rmtree(run)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow_matrix
def test_mock_comes_and_goes(
    tmp_path_factory: pytest.TempPathFactory, ansible_env: dict[str, str], tmp_path: Path
) -> None:
    copy = root_tree.pristine(tmp_path_factory).copy(tmp_path / "tree")
    role = "goldsmith.images.cml_mock_gui"
    # Nothing depends on it, and it is in the image all the same.
    copy.run("apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "less")
    copy.run("apt-mark", "auto", "less")
    before = set(copy.run("dpkg-query", "--show", "--showformat=${Package}\n").split())
    assert copy.play([role], ansible_env, "--check").code == 0
    first = copy.play([role], ansible_env)
    assert first.code == 0, first.output
    assert copy.play([role], ansible_env).recap["changed"] == 0
    states = copy.run("systemctl", "is-enabled", "cml-mock-gui", "nginx", check=False).split()
    assert states == ["enabled", "masked"]
    result = ask_mock(copy)
    assert (result["ok"], result["state"], result["version"]) == (True, "ready", "0.0.0+mock"), result
    assert result["page"]["title"] == "Modeling Labs (mock)" and result["certificate"]["verified"]
    gone = copy.play([role], ansible_env, cml_mock_gui_state="absent")
    assert gone.code == 0, gone.output
    assert copy.play([role], ansible_env, cml_mock_gui_state="absent").recap["changed"] == 0
    after = set(copy.run("dpkg-query", "--show", "--showformat=${Package}\n").split())
    assert before - after == set()
    assert not [name for name in after if "nginx" in name]
    # What apt has downloaded is the clean-up's business.
    left = "find / -xdev -path /var/cache/apt -prune -o -name '*mock-gui*' -print -o -name 'nginx*' -print"
    assert copy.run("sh", "-c", left) == ""
