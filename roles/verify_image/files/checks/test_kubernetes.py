# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine is ready to become a Kubernetes node, and still is after a reboot."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from testinfra.host import Host

KUBE_PACKAGES = ("kubeadm", "kubelet", "kubectl")
MODULES = ("overlay", "br_netfilter")
SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.default.forwarding": "1",
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.bridge.bridge-nf-call-ip6tables": "1",
    "vm.overcommit_memory": "1",
    "vm.panic_on_oom": "0",
    "kernel.panic": "10",
    "kernel.panic_on_oops": "1",
    "kernel.keys.root_maxkeys": "1000000",
    "kernel.keys.root_maxbytes": "25000000",
    "fs.inotify.max_user_instances": "8192",
    "fs.inotify.max_user_watches": "524288",
}
# What kubeadm's preflight asks for (errors and warnings), and what kube-proxy and the CNIs use.
PROGRAMS = [
    "conntrack",
    "ebtables",
    "ethtool",
    "ip",
    "ipset",
    "iptables",
    "modprobe",
    "mount",
    "nft",
    "nsenter",
    "socat",
    "sysctl",
    "tc",
    "touch",
]

# One script for all questions: a command in an emulated guest is slow.
GATHER = r"""
set -u
section() { printf '\n@@ %s\n' "$1"; }
section modules; for name in overlay br_netfilter; do [ -d "/sys/module/$name" ] && echo "$name"; done
section sysctls; for name in $1; do printf '%s=' "$name"; sysctl -n "$name" 2>/dev/null || echo; done
section swaps; tail -n +2 /proc/swaps
section swap_total; grep '^SwapTotal:' /proc/meminfo
section swap_units; systemctl list-units --type=swap --all --plain --no-legend --no-pager
section swap_target; systemctl show --property=LoadState swap.target
section fstab; grep -v '^[[:space:]]*#' /etc/fstab
section packages; dpkg-query --show --showformat='${Package} ${db:Status-Status} ${Version}\n' \
    kubeadm kubelet kubectl kubernetes-client cri-tools 2>/dev/null
section held; apt-mark showhold
section kubelet; systemctl show --property=LoadState,UnitFileState,ActiveState,NRestarts kubelet.service
section source; cat /etc/apt/sources.list.d/kubernetes.sources
section keyring; stat -c '%a %U' /etc/apt/keyrings/kubernetes.asc; cat /etc/apt/keyrings/kubernetes.asc
section programs; for name in $2; do command -v "$name" >/dev/null && echo "$name"; done
section kubernetes_state; find /etc/kubernetes/manifests /etc/kubernetes/*.conf /var/lib/etcd /var/lib/kubelet/pki \
    -mindepth 0 -not -type d 2>/dev/null
section client; kubectl version --client 2>&1
section end
"""


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^@@ (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _properties(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@pytest.fixture(scope="module")
def node(host: Host) -> dict[str, str]:
    """What the machine says of itself."""
    script = "PATH=$PATH:/usr/sbin:/sbin\n" + GATHER
    return _sections(host.run("sh -c %s sh %s %s", script, " ".join(SYSCTLS), " ".join(PROGRAMS)).stdout)


@pytest.fixture(scope="module")
def packages(node: dict[str, str]) -> dict[str, str]:
    """Installed packages and their versions."""
    rows = [line.split() for line in node["packages"].splitlines()]
    return {row[0]: row[2] for row in rows if len(row) == 3 and row[1] == "installed"}


@pytest.fixture(scope="module")
def source(expect: dict[str, Any]) -> str:
    """Where the Kubernetes packages were to come from."""
    return str(expect.get("kubernetes_packages", "distribution"))


def _only_from_a_repository(source: str) -> None:
    if source not in ("upstream", "mirror"):
        pytest.skip(f"the Kubernetes packages come from: {source}")


@pytest.mark.reboot
def test_kernel_modules_are_loaded(node: dict[str, str]) -> None:
    assert node["modules"].split() == list(MODULES)


@pytest.mark.reboot
def test_kernel_settings_are_in_effect(node: dict[str, str], expect: dict[str, Any]) -> None:
    wanted = {**SYSCTLS, **{name: str(value) for name, value in expect.get("kubernetes_sysctls", {}).items()}}
    found = _properties(node["sysctls"])
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.reboot
def test_there_is_no_swap(node: dict[str, str]) -> None:
    assert node["swaps"] == ""
    assert node["swap_total"].split()[1] == "0"


@pytest.mark.reboot
def test_nothing_would_bring_swap_back(node: dict[str, str]) -> None:
    active = [line for line in node["swap_units"].splitlines() if " active " in f"{line} "]
    assert not active
    # The target of a machine that had swap until just now stays "active" until the next boot; it starts nothing.
    assert _properties(node["swap_target"])["LoadState"] == "masked"
    assert not [line for line in node["fstab"].splitlines() if len(line.split()) > 2 and line.split()[2] == "swap"]


def test_programs_that_kubeadm_and_cnis_call(node: dict[str, str]) -> None:
    assert not set(PROGRAMS) - set(node["programs"].split())


def test_packages_from_a_repository(
    packages: dict[str, str], source: str, node: dict[str, str], expect: dict[str, Any]
) -> None:
    _only_from_a_repository(source)
    assert not set(KUBE_PACKAGES) - set(packages)
    wanted = f"{expect['kubernetes_version']}" if "kubernetes_version" in expect else ""
    wrong = {name: packages[name] for name in KUBE_PACKAGES if not f"{packages[name]}.".startswith(wanted)}
    assert not wrong, f"not of version {wanted}"
    # They are upgraded in a fixed order by hand; everything else gets its security updates.
    assert sorted(node["held"].split()) == sorted(KUBE_PACKAGES)


def test_packages_from_the_distribution(packages: dict[str, str], source: str, node: dict[str, str]) -> None:
    if source != "distribution":
        pytest.skip(f"the Kubernetes packages come from: {source}")
    assert {"kubectl", "kubernetes-client"} & set(packages)
    assert not {"kubeadm", "kubelet"} & set(packages)
    assert not set(KUBE_PACKAGES) & set(node["held"].split())
    assert re.search(r"Client Version:.*v1\.\d+", node["client"], re.DOTALL), node["client"]


@pytest.mark.reboot
def test_kubelet_is_enabled_and_waits(node: dict[str, str], source: str) -> None:
    _only_from_a_repository(source)
    state = _properties(node["kubelet"])
    assert state == {"LoadState": "loaded", "UnitFileState": "enabled", "ActiveState": "inactive", "NRestarts": "0"}


def test_repository_and_its_key(node: dict[str, str], source: str, expect: dict[str, Any]) -> None:
    _only_from_a_repository(source)
    fields = dict(line.split(": ", 1) for line in node["source"].splitlines() if re.match(r"[A-Za-z-]+: ", line))
    assert fields["Signed-By"] == "/etc/apt/keyrings/kubernetes.asc"
    assert fields["Suites"] == "/"
    assert "Trusted" not in fields
    if source == "upstream":
        minor = ".".join(str(expect.get("kubernetes_version", "1")).split(".")[:2])
        assert re.fullmatch(rf"https://pkgs\.k8s\.io/core:/stable:/v{re.escape(minor)}[.0-9]*/deb/", fields["URIs"])
    mode, key = node["keyring"].split("\n", 1)
    assert mode == "644 root"
    assert key.startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----")


def test_no_cluster_has_left_anything(node: dict[str, str]) -> None:
    assert node["kubernetes_state"] == ""
