# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trees that are and are not ready for kubeadm, made of a few files; and the parts that judge what was gathered."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _kubernetes_preflight as preflight
from ansible_collections.goldsmith.images.plugins.module_utils import _node_files

KERNEL = "6.12.0-cloud-amd64"
CONTAINERD = """\
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = true
"""
PROGRAMS = ("containerd", "ip", "iptables", "mount", "nsenter", "ebtables", "ethtool", "socat", "tc", "touch")


def write(root: Path, path: str, text: str = "", mode: int = 0o644) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def package(name: str, version: str) -> str:
    return f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A tree with everything that kubeadm asks for."""
    for name in (*PROGRAMS, "kubelet", "kubeadm"):
        write(tmp_path, f"usr/bin/{name}", mode=0o755)
    settings = [each.split("|", maxsplit=1)[0] for each in (*preflight.KERNEL_REQUIRED, *preflight.KERNEL_OPTIONAL)]
    write(tmp_path, f"boot/config-{KERNEL}", "".join(f"CONFIG_{each}=y\n" for each in settings))
    (tmp_path / "usr/lib/modules" / KERNEL).mkdir(parents=True)
    write(tmp_path, "etc/containerd/config.toml", CONTAINERD)
    write(tmp_path, "etc/sysctl.d/zz-kubernetes.conf", "net.ipv4.ip_forward = 1\n")
    write(tmp_path, "usr/lib/systemd/system/kubelet.service", "[Unit]\n")
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "kubelet.service").symlink_to("/usr/lib/systemd/system/kubelet.service")
    packages = [("kubelet", "1.36.2-1.1"), ("kubeadm", "1.36.2-1.1"), ("containerd", "2.0.5~ds1-1")]
    write(tmp_path, "var/lib/dpkg/status", "".join(package(*each) for each in packages))
    return tmp_path


def no_program(command: list[str]) -> tuple[int, str, str]:
    raise AssertionError(f"a tree is only read, and this was run: {command}")


def ask(root: Path, **question: object) -> dict[str, preflight.Check]:
    question = {"subnets": ("10.96.0.0/12",), "offline": True, **question}
    checks = preflight.Preflight(preflight.Question(root=str(root), **question), no_program).answers()
    return {check.name: check for check in checks}


def test_nothing_is_wrong_with_a_good_tree_and_nothing_live_has_passed(node: Path) -> None:
    checks = ask(node)
    assert {name: check.message for name, check in checks.items() if check.level in ("error", "warning")} == {}
    skipped = {name for name, check in checks.items() if check.level == "skipped"}
    live = {"NumCPU", "Mem", "CRI", "Hostname", "Swap", "IsPrivilegedUser", "CgroupVersion", "Port-6443", "Port-10250"}
    assert live | {"FileContent--proc-sys-net-ipv4-ip_forward"} <= skipped
    assert checks["KubeletVersion"].level == checks["Service-Kubelet"].level == "passed"


def damage_program(root: Path) -> None:
    (root / "usr/bin/iptables").unlink()


def damage_optional_program(root: Path) -> None:
    (root / "usr/bin/socat").chmod(0o644)


def damage_link(root: Path) -> None:
    """On the machine that reads the tree there is such a file; in the tree there is not."""
    (root / "usr/bin/mount").unlink()
    (root / "usr/bin/mount").symlink_to("/bin/sh")


def damage_kernel(root: Path) -> None:
    config = root / f"boot/config-{KERNEL}"
    config.write_text(config.read_text().replace("CONFIG_MEMCG=y", "# CONFIG_MEMCG is not set"))


def damage_kernel_config(root: Path) -> None:
    (root / f"boot/config-{KERNEL}").unlink()


def damage_forwarding(root: Path) -> None:
    write(root, "etc/sysctl.d/zzz-hardening.conf", "net/ipv4/ip_forward=0\n")


def damage_no_forwarding(root: Path) -> None:
    (root / "etc/sysctl.d/zz-kubernetes.conf").unlink()


def damage_fstab(root: Path) -> None:
    write(root, "etc/fstab", "# swap\n/dev/vda3 none swap sw 0 0\n")


def damage_containerd(root: Path) -> None:
    write(root, "etc/containerd/config.toml", CONTAINERD.replace("version = 2", "version = 4"))


def damage_runtime(root: Path) -> None:
    status = root / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("2.0.5~ds1-1", "1.7.24~ds1-6"))


def damage_kubelet(root: Path) -> None:
    status = root / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("1.36.2-1.1", "1.37.0-1.1", 1))


def damage_service(root: Path) -> None:
    (root / "etc/systemd/system/kubelet.service").symlink_to("/dev/null")


def damage_manifest(root: Path) -> None:
    write(root, "etc/kubernetes/manifests/etcd.yaml")


def damage_etcd(root: Path) -> None:
    write(root, "var/lib/etcd/member/snap/db")


def damage_ca(root: Path) -> None:
    write(root, "etc/kubernetes/pki/ca.crt")


def damage_proxy(root: Path) -> None:
    write(root, "etc/environment", 'https_proxy="http://me:secret@proxy.example.org:3128"\nno_proxy=10.0.0.1\n')


def damage_firewalld(root: Path) -> None:
    write(root, "usr/lib/systemd/system/firewalld.service")
    (root / "etc/systemd/system/multi-user.target.wants/firewalld.service").symlink_to("/x")


@pytest.mark.parametrize(
    ("damage", "name", "level"),
    [
        (damage_program, "FileExisting-iptables", "error"),
        (damage_optional_program, "FileExisting-socat", "warning"),
        (damage_link, "FileExisting-mount", "error"),
        (damage_kernel, "SystemVerification", "error"),
        (damage_kernel_config, "SystemVerification", "warning"),
        (damage_forwarding, "FileContent--proc-sys-net-ipv4-ip_forward", "error"),
        (damage_no_forwarding, "FileContent--proc-sys-net-ipv4-ip_forward", "error"),
        (damage_fstab, "Swap", "warning"),
        (damage_containerd, "ContainerdConfig", "error"),
        (damage_runtime, "ContainerRuntimeVersion", "warning"),
        (damage_kubelet, "KubeletVersion", "error"),
        (damage_service, "Service-Kubelet", "warning"),
        (damage_manifest, "FileAvailable--etc-kubernetes-manifests-etcd.yaml", "error"),
        (damage_etcd, "DirAvailable--var-lib-etcd", "error"),
        (damage_ca, "FileAvailable--etc-kubernetes-pki-ca.crt", "error"),
        (damage_proxy, "HTTPProxyCIDR", "warning"),
        (damage_firewalld, "Firewalld", "warning"),
    ],
)
def test_each_damage_is_found(node: Path, damage: object, name: str, level: str) -> None:
    damage(node)  # type: ignore[operator]
    checks = ask(node, kubernetes_version=(1, 36))
    assert checks[name].level == level, checks[name]
    assert "secret" not in checks[name].message
    others = {check.name for check in checks.values() if check.level in ("error", "warning")} - {name}
    # A newer kubelet is the first kubernetes package of the list as well.
    assert not others


def test_conntrack_is_needed_before_1_32_only(node: Path) -> None:
    assert ask(node, kubernetes_version=(1, 31))["FileExisting-conntrack"].level == "error"
    assert "FileExisting-conntrack" not in ask(node, kubernetes_version=(1, 32))


def test_ipv6_forwarding_is_asked_for_with_an_ipv6_network(node: Path) -> None:
    name = "FileContent--proc-sys-net-ipv6-conf-default-forwarding"
    assert name not in ask(node)
    assert ask(node, subnets=("10.96.0.0/12", "fd00:1::/108"))[name].level == "error"
    write(node, "etc/sysctl.d/50.conf", "net.ipv6.conf.*.forwarding = 1\n-net.ipv6.conf.all.forwarding = 0\n")
    assert ask(node, subnets=("fd00:1::/108",))[name].level == "skipped"


def test_join_and_init_ask_for_different_files(node: Path) -> None:
    damage_manifest(node)
    damage_ca(node)
    errors = {
        command: [check.name for check in ask(node, commands=(command,)).values() if check.level == "error"]
        for command in ("init", "join")
    }
    assert errors["init"] == ["FileAvailable--etc-kubernetes-manifests-etcd.yaml"]
    assert errors["join"] == ["FileAvailable--etc-kubernetes-pki-ca.crt"]


def test_a_file_of_a_higher_folder_replaces_one_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/sysctl.d/50-a.conf", "kernel.panic = 1\n")
    write(tmp_path, "etc/sysctl.d/50-a.conf", "# nothing\n")
    assert _node_files.boot_sysctl(str(tmp_path), "kernel.panic") is None
    write(tmp_path, "etc/sysctl.d/60-b.conf", "kernel.panic=5\nkernel.p* = 7\n")
    assert _node_files.boot_sysctl(str(tmp_path), "kernel.panic") == ("5", "/etc/sysctl.d/60-b.conf")


def test_links_stay_in_the_tree(tmp_path: Path) -> None:
    write(tmp_path, "a/file", "inside")
    (tmp_path / "link").symlink_to("/../../a/./file")
    (tmp_path / "loop").symlink_to("loop")
    assert _node_files.read(str(tmp_path), "/link") == "inside"
    assert _node_files.inside(str(tmp_path), "/../../etc/passwd") == str(tmp_path / "etc/passwd")
    with pytest.raises(OSError):
        _node_files.read(str(tmp_path), "/loop")


@pytest.mark.parametrize(
    ("release", "found", "level"),
    [
        (["cpu", "cpuset", "memory", "pids", "hugetlb", "devices", "freezer"], 0, ""),
        (["cpu", "cpuset", "memory", "pids", "devices", "freezer"], 1, "warning"),
        (["cpu", "cpuset", "pids", "hugetlb", "devices", "freezer"], 1, "error"),
        (None, 1, "error"),
    ],
)
def test_control_groups(release: list[str] | None, found: int, level: str) -> None:
    checks = preflight.cgroup_checks(release)
    assert len(checks) == found
    assert [check.level for check in checks] == [level] * found


@pytest.mark.parametrize(
    ("code", "answer", "level"),
    [
        (0, {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}}, "passed"),
        (0, {"status": {"conditions": [{"type": "RuntimeReady", "status": False, "message": "no"}]}}, "error"),
        (0, {}, "error"),
        (1, {"status": {"conditions": [{"type": "RuntimeReady", "status": True}]}}, "error"),
    ],
)
def test_the_runtimes_own_answer(code: int, answer: dict[str, object], level: str) -> None:
    assert preflight.judge_cri(code, json.dumps(answer), "").level == level


@pytest.mark.parametrize(
    ("no_proxy", "proxied"),
    [("", True), ("10.96.0.1", False), ("10.96.0.0/12,x.org", False), ("192.168.0.0/16", True), ("*", False)],
)
def test_proxies(no_proxy: str, proxied: bool) -> None:
    environment = {"HTTPS_PROXY": "http://proxy.example.org:3128", "NO_PROXY": no_proxy}
    assert (preflight.proxy_check("HTTPProxyCIDR", "10.96.0.0/12", environment).level == "warning") is proxied


def test_errors_are_forgiven_as_kubeadm_does_it() -> None:
    checks = [
        preflight.Check("Mem", "error", ""),
        preflight.Check("NumCPU", "error", ""),
        preflight.Check("A", "passed", ""),
    ]
    assert [check.level for check in preflight.forgive(checks, ["mem"])] == ["warning", "error", "passed"]
    assert [check.level for check in preflight.forgive(checks, ["all"])] == ["warning", "warning", "passed"]


def test_a_port_in_use_is_seen_on_any_address() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        asked = preflight.Preflight(preflight.Question(), no_program)
        assert asked.port(port).level == "error"
    assert asked.port(port).level == "passed"


def test_only_some_checks(node: Path) -> None:
    question = preflight.Question(root=str(node), offline=True)
    found = preflight.Preflight(question, no_program).answers(["swap", "FileExisting"])
    assert {check.name.partition("-")[0] for check in found} == {"Swap", "FileExisting"}


def test_wrong_questions() -> None:
    for question in (preflight.Question(root=os.devnull), preflight.Question(subnets=("10.0.0.0/99",))):
        with pytest.raises(preflight.PreflightError):
            preflight.validate(question)
