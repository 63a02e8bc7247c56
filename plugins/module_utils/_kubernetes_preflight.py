# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""What kubeadm's preflight looks at, by its names, without kubeadm; also for a system that is not booted.

After kubeadm's cmd/kubeadm/app/preflight of Kubernetes 1.31 to 1.36. Two names are of our own: ContainerdConfig, and
CgroupVersion, which kubeadm reports as part of SystemVerification.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
import socket
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils import _containerd, _node_files

INIT, JOIN = "init", "join"
PASSED, WARNING, ERROR, SKIPPED = "passed", "warning", "error", "skipped"
CPUS, MEGABYTES = 2, 1700
MANIFESTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")
# Names that stand for the same are separated by a bar.
KERNEL_REQUIRED = (
    "NAMESPACES",
    "NET_NS",
    "PID_NS",
    "IPC_NS",
    "UTS_NS",
    "CGROUPS",
    "CGROUP_CPUACCT",
    "CGROUP_DEVICE",
    "CGROUP_FREEZER",
    "CGROUP_SCHED",
    "CPUSETS",
    "MEMCG",
    "INET",
    "EXT4_FS",
    "PROC_FS",
    "NETFILTER_XT_TARGET_REDIRECT|IP_NF_TARGET_REDIRECT",
    "NETFILTER_XT_MATCH_COMMENT",
    "FAIR_GROUP_SCHED",
)
KERNEL_OPTIONAL = ("OVERLAY_FS|OVERLAYFS_FS", "CFS_BANDWIDTH")
CGROUPS = ("cpu", "cpuset", "devices", "freezer", "memory", "pids")
# Version 2 has these two without a controller of that name.
CGROUPS_WITHOUT_CONTROLLER = ("devices", "freezer")
CGROUP_V1_WARNING, CGROUP_V1_ERROR = (1, 31), (1, 35)
CONNTRACK_NEEDED_BEFORE = (1, 32)
# A label, and a "qualified name" is made of these: what the kubelet accepts as a node's name.
NODE_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


class PreflightError(Exception):
    """The question cannot be answered as it was put."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One answer. kubeadm has warnings and errors; here it is also said what passed and what was not looked at."""

    name: str
    level: str
    message: str


@dataclasses.dataclass(frozen=True)
class Question:
    """What the node is to become."""

    root: str = "/"
    offline: bool = False
    commands: tuple[str, ...] = (INIT, JOIN)
    kubernetes_version: tuple[int, ...] | None = None
    containerd_version: tuple[int, ...] | None = None
    cri_socket: str = "/run/containerd/containerd.sock"
    bind_port: int = 6443
    advertise_address: str = ""
    subnets: tuple[str, ...] = ()
    etcd_data_dir: str = "/var/lib/etcd"
    node_name: str = ""


Run = t.Callable[[list[str]], tuple[int, str, str]]
OFFLINE = "needs the running system"


@dataclasses.dataclass
class Preflight:
    """Answers one question about one system; `run` runs a program there, if programs can be run there."""

    question: Question
    run: Run

    @property
    def root(self) -> str:
        return self.question.root

    @property
    def native(self) -> bool:
        return self.root == "/"

    @property
    def kubernetes(self) -> tuple[int, ...] | None:
        """The version that was asked for, else that of an installed package."""
        if self.question.kubernetes_version:
            return self.question.kubernetes_version
        text = _node_files.package_version(self.root, "kubeadm", "kubelet", "kubectl")
        return _containerd.parse_version(text) if text else None

    def containerd(self) -> tuple[int, ...] | None:
        if self.question.containerd_version:
            return self.question.containerd_version
        text = _node_files.package_version(self.root, "containerd", "containerd.io")
        program = _node_files.find_program(self.root, "containerd")
        if self.native and program:
            code, out, _err = self.run([program, "--version"])
            text = out if code == 0 else text
        return _containerd.parse_version(text) if text else None

    # --- the machine -------------------------------------------------------------------------------------------------

    def is_privileged_user(self) -> Check:
        if os.geteuid() == 0:
            return Check("IsPrivilegedUser", PASSED, "runs as root")
        return Check("IsPrivilegedUser", ERROR, "user is not running as root")

    def num_cpu(self) -> Check:
        found = len(os.sched_getaffinity(0))
        if found < CPUS:
            return Check("NumCPU", ERROR, f"the number of available CPUs {found} is less than the required {CPUS}")
        return Check("NumCPU", PASSED, f"{found} CPUs")

    def mem(self) -> Check:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024**2
        if found < MEGABYTES:
            return Check("Mem", ERROR, f"the system RAM ({found} MB) is less than the minimum {MEGABYTES} MB")
        return Check("Mem", PASSED, f"{found} MB")

    def hostname(self) -> Check:
        name = (self.question.node_name or socket.gethostname()).strip().lower()
        if not NODE_NAME.fullmatch(name):
            return Check(
                "Hostname", WARNING, f"invalid node name format {name!r}: letters, digits, '-', '_' and '.' only"
            )
        try:
            socket.getaddrinfo(name, None)
        except OSError as error:
            return Check("Hostname", WARNING, f'hostname "{name}" could not be reached: {error.strerror or error}')
        return Check("Hostname", PASSED, f"{name} is valid and resolves")

    def port(self, number: int) -> Check:
        name = f"Port-{number}"
        try:
            _bind(number)
        except OSError as error:
            return Check(name, ERROR, f"Port {number} is in use ({error.strerror})")
        return Check(name, PASSED, f"port {number} is free")

    def forwarding(self, key: str) -> Check:
        """What the running kernel does; of a system that is not booted, what its files will make it do."""
        path = "/proc/sys/" + key.replace(".", "/")
        name = "FileContent-" + path.replace("/", "-")
        if self.question.offline:
            found = _node_files.boot_sysctl(self.root, key)
            if found is None:
                return Check(name, ERROR, f"no file in sysctl.d sets {key} to 1 at boot")
            level = SKIPPED if found[0] == "1" else ERROR
            return Check(name, level, f"{found[1]} sets {key} to {found[0]} at boot; the value in effect {OFFLINE}")
        text = _node_files.read("/", path)
        if text is None:
            return Check(name, ERROR, f"{path} does not exist")
        if not text.startswith("1"):
            return Check(name, ERROR, f"{path} contents are not set to 1")
        return Check(name, PASSED, f"{path} is 1")

    def swap(self) -> Check:
        listed = _node_files.fstab_swaps(self.root)
        if self.question.offline:
            if listed:
                return Check("Swap", WARNING, f"/etc/fstab has swap: {', '.join(listed)}; disable swap on the node")
            return Check("Swap", SKIPPED, f"/etc/fstab has no swap; what is in use {OFFLINE}")
        used = [line.split()[0] for line in (_node_files.read("/", "/proc/swaps") or "").splitlines()[1:]]
        if used:
            message = (
                f"swap is in use ({', '.join(used)}); configure the kubelet for it (cgroup v2 only) or disable swap"
            )
            return Check("Swap", WARNING, message)
        return Check("Swap", PASSED, "no swap is in use")

    def cgroup_version(self) -> Check:
        if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            return Check("CgroupVersion", PASSED, "cgroup v2")
        kubernetes = self.kubernetes or ()
        message = "cgroup v1: the kubelet refuses it from Kubernetes 1.35 on (failCgroupV1); boot with cgroup v2"
        if kubernetes >= CGROUP_V1_ERROR:
            return Check("CgroupVersion", ERROR, message)
        return Check("CgroupVersion", WARNING if kubernetes >= CGROUP_V1_WARNING else PASSED, message)

    def system_verification(self) -> list[Check]:
        """The kernel's configuration, by its files; cgroups only where the kernel runs."""
        releases = _node_files.kernel_releases(self.root) if self.question.offline else [os.uname().release]
        checks = []
        for release in releases:
            config = _node_files.kernel_config(self.root, release)
            if config is None and not self.question.offline and os.path.exists("/proc/config.gz"):
                config = _node_files.parse_kernel_config(_node_files.read("/", "/proc/config.gz") or "")
            checks += kernel_checks(release, config)
        if self.question.offline:
            return checks or [Check("SystemVerification", SKIPPED, f"no kernel is installed; the rest {OFFLINE}")]
        checks += cgroup_checks(_cgroups())
        return checks or [Check("SystemVerification", PASSED, f"kernel {releases[0]} and its control groups")]

    # --- programs and services ---------------------------------------------------------------------------------------

    def programs(self) -> list[Check]:
        mandatory = ["ip", "iptables", "mount", "nsenter"]
        if self.kubernetes and self.kubernetes < CONNTRACK_NEEDED_BEFORE:
            mandatory.insert(0, "conntrack")
        checks = []
        for program in [*mandatory, "ebtables", "ethtool", "socat", "tc", "touch"]:
            name = f"FileExisting-{program}"
            path = _node_files.find_program(self.root, program)
            if path:
                checks.append(Check(name, PASSED, path))
            else:
                level = ERROR if program in mandatory else WARNING
                checks.append(Check(name, level, f"{program} not found in system path"))
        return checks

    def service_kubelet(self) -> Check:
        name, unit = "Service-Kubelet", "kubelet.service"
        if not _node_files.unit_exists(self.root, unit):
            return Check(name, WARNING, "kubelet service does not exist")
        if not _node_files.unit_is_enabled(self.root, unit):
            return Check(name, WARNING, "kubelet service is not enabled, please run 'systemctl enable kubelet.service'")
        return Check(name, PASSED, "kubelet service is enabled")

    def firewalld(self) -> Check:
        unit = "firewalld.service"
        ports = f"[{self.question.bind_port} 10250]"
        if not _node_files.unit_exists(self.root, unit):
            return Check("Firewalld", PASSED, "there is no firewalld")
        if self.question.offline:
            active = _node_files.unit_is_enabled(self.root, unit)
        else:
            active = self.run(["systemctl", "is-active", "--quiet", unit])[0] == 0
        if active:
            return Check("Firewalld", WARNING, f"firewalld is active, please ensure ports {ports} are open")
        return Check("Firewalld", PASSED, "firewalld is not active")

    def version_of(self, package: str) -> tuple[int, ...] | None:
        """A program's own answer where it can be run, else its package's version."""
        program = _node_files.find_program(self.root, package)
        text = _node_files.package_version(self.root, package)
        if program and self.native and not text:
            command = [program, "version", "-o", "short"] if package == "kubeadm" else [program, "--version"]
            code, out, _err = self.run(command)
            text = out if code == 0 else None
        return _containerd.parse_version(text) if program and text else None

    def kubernetes_version(self) -> Check:
        name, kubeadm, wanted = "KubernetesVersion", self.version_of("kubeadm"), self.kubernetes
        if kubeadm is None or wanted is None:
            return Check(name, SKIPPED, "kubeadm is not installed")
        if wanted[:2] > kubeadm[:2]:
            return Check(name, WARNING, f"Kubernetes {dotted(wanted)} is newer than kubeadm {dotted(kubeadm)}")
        return Check(name, PASSED, f"kubeadm {dotted(kubeadm)} for Kubernetes {dotted(wanted)}")

    def kubelet_version(self) -> Check:
        name, kubelet, wanted = "KubeletVersion", self.version_of("kubelet"), self.kubernetes
        if kubelet is None:
            return Check(name, ERROR, "couldn't get kubelet version: kubelet is not installed")
        kubeadm = self.version_of("kubeadm")
        if kubeadm and (kubelet[0], kubelet[1]) < (kubeadm[0], kubeadm[1] - 3):
            return Check(name, ERROR, f"kubelet {dotted(kubelet)} is older than kubeadm {dotted(kubeadm)} supports")
        if wanted and kubelet[:2] > wanted[:2]:
            message = f"the kubelet ({dotted(kubelet)}) is newer than the control plane ({dotted(wanted)})"
            return Check(name, ERROR, message)
        return Check(name, PASSED, f"kubelet {dotted(kubelet)}")

    # --- the container runtime ---------------------------------------------------------------------------------------

    def cri(self) -> Check:
        path = self.question.cri_socket
        if not os.path.exists(path):
            return Check("CRI", ERROR, f"container runtime is not running: there is no {path}")
        crictl, ctr = (_node_files.find_program("/", name) for name in ("crictl", "ctr"))
        if crictl:
            code, out, err = self.run([crictl, "--runtime-endpoint", f"unix://{path}", "info"])
            return judge_cri(code, out, err)
        if ctr:
            code, out, err = self.run([ctr, "--address", path, "plugins", "ls"])
            states = [
                line.split()
                for line in out.splitlines()
                if re.match(r"io\.containerd\.(grpc\.v1\s+cri|cri\.v1)\b", line)
            ]
            if code == 0 and states and all(row[-1] == "ok" for row in states):
                return Check("CRI", PASSED, "containerd runs with its CRI plugins")
            return Check(
                "CRI",
                ERROR,
                f"container runtime is not running: {err.strip() or 'a CRI plugin of containerd is not ok'}",
            )
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(path)
        except OSError as error:
            return Check("CRI", ERROR, f"container runtime is not running: {path}: {error.strerror or error}")
        return Check(
            "CRI", WARNING, f"something listens on {path}; without crictl or ctr it cannot be asked for the CRI"
        )

    def runtime_version(self) -> Check:
        name, daemon, kubernetes = "ContainerRuntimeVersion", self.containerd(), self.kubernetes
        if daemon is None or kubernetes is None:
            return Check(name, SKIPPED, "no containerd, or no Kubernetes version to compare it with")
        return Check(name, *_containerd.judge_version(daemon, kubernetes))

    def containerd_config(self) -> Check:
        """The effective configuration where the daemon can be asked; its main file elsewhere."""
        name, path, daemon = "ContainerdConfig", "/etc/containerd/config.toml", self.containerd()
        text = _node_files.read(self.root, path)
        program = _node_files.find_program(self.root, "containerd")
        if daemon is None or not program:
            return Check(name, SKIPPED, "containerd is not installed")
        if text is None:
            return Check(
                name, WARNING, f"there is no {path}: the defaults compiled into containerd use the cgroupfs driver"
            )
        problems = _containerd.config_problems(text, daemon)
        if self.native and not any("its version is" in problem for problem in problems):
            code, out, err = self.run([program, "--config", path, "config", "dump"])
            if code != 0:
                problems = [err.strip().splitlines()[-1] if err.strip() else "containerd refuses it"]
            else:
                problems = _containerd.config_problems(out, daemon)
        if problems:
            return Check(name, ERROR, f"{path}: {'; '.join(problems)}")
        return Check(name, PASSED, f"{path} fits containerd {dotted(daemon)}")

    # --- what a cluster has left, and the way to it ------------------------------------------------------------------

    def file_available(self, path: str) -> Check:
        name = "FileAvailable-" + path.replace("/", "-")
        if os.path.lexists(_node_files.inside(self.root, path)):
            return Check(name, ERROR, f"{path} already exists")
        return Check(name, PASSED, f"there is no {path}")

    def dir_available(self, path: str) -> Check:
        name = "DirAvailable-" + path.replace("/", "-")
        if _node_files.names(self.root, path):
            return Check(name, ERROR, f"{path} is not empty")
        return Check(name, PASSED, f"{path} is empty or missing")

    def http_proxy(self) -> list[Check]:
        environment = read_environment(self.root) if self.question.offline else dict(os.environ)
        targets = [("HTTPProxy", self.question.advertise_address)] if self.question.advertise_address else []
        targets += [("HTTPProxyCIDR", subnet) for subnet in self.question.subnets]
        return [proxy_check(name, target, environment) for name, target in targets]

    # --- all of it ---------------------------------------------------------------------------------------------------

    def plan(self) -> list[tuple[str, t.Callable[[], t.Any]]]:
        """Names (of a check, or what all names of several begin with) and what answers them, in kubeadm's order."""
        families = {ipaddress.ip_network(subnet, strict=False).version for subnet in self.question.subnets} or {4}
        if self.question.advertise_address:
            families.add(ipaddress.ip_address(self.question.advertise_address).version)
        steps: list[tuple[str, t.Callable[[], t.Any]]] = [("IsPrivilegedUser", self.is_privileged_user)]
        init, join = INIT in self.question.commands, JOIN in self.question.commands
        if init:
            ports = [self.question.bind_port, 10259, 10257]
            steps += [("NumCPU", self.num_cpu), ("Mem", self.mem), ("KubernetesVersion", self.kubernetes_version)]
            steps += [("Firewalld", self.firewalld)]
            steps += [(f"Port-{number}", lambda number=number: self.port(number)) for number in ports]
            steps += [
                ("FileAvailable", lambda name=name: self.file_available(f"/etc/kubernetes/manifests/{name}.yaml"))
                for name in MANIFESTS
            ]
            steps += [("HTTPProxy", self.http_proxy)]
        if join:
            files = ("kubelet.conf", "bootstrap-kubelet.conf", "pki/ca.crt")
            steps += [
                ("FileAvailable", lambda name=name: self.file_available(f"/etc/kubernetes/{name}")) for name in files
            ]
        steps += [
            ("CRI", self.cri),
            ("ContainerRuntimeVersion", self.runtime_version),
            ("ContainerdConfig", self.containerd_config),
            ("Swap", self.swap),
            ("FileExisting", self.programs),
            ("SystemVerification", self.system_verification),
            ("CgroupVersion", self.cgroup_version),
            ("Hostname", self.hostname),
            ("KubeletVersion", self.kubelet_version),
            ("Service-Kubelet", self.service_kubelet),
            ("Port-10250", lambda: self.port(10250)),
        ]
        keys = (["net.ipv4.ip_forward"] if 4 in families else []) + (
            ["net.ipv6.conf.default.forwarding"] if 6 in families else []
        )
        steps += [("FileContent", lambda key=key: self.forwarding(key)) for key in keys]
        if init:
            steps += [(f"Port-{number}", lambda number=number: self.port(number)) for number in (2379, 2380)]
            steps += [("DirAvailable", lambda: self.dir_available(self.question.etcd_data_dir))]
        return steps

    def answers(self, only: t.Sequence[str] = ()) -> list[Check]:
        """Every answer. What needs the running system is skipped, and never passed, for one that is not booted."""
        result: list[Check] = []
        for name, answer in self.plan():
            if only and not any(same_check(each, name) for each in only):
                continue
            if self.question.offline and (name in LIVE_ONLY or name.startswith("Port-")):
                result.append(Check(name, SKIPPED, OFFLINE))
                continue
            found = answer()
            result += found if isinstance(found, list) else [found]
        if INIT in self.question.commands and not only:
            result.append(Check("ImagePull", SKIPPED, "kubeadm pulls the images of the control plane itself"))
        return result


LIVE_ONLY = ("IsPrivilegedUser", "NumCPU", "Mem", "CRI", "CgroupVersion", "Hostname")


def same_check(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def forgive(checks: t.Sequence[Check], ignored: t.Sequence[str]) -> list[Check]:
    """As --ignore-preflight-errors does: errors of these names (any case, or `all`) become warnings."""
    lowered = {name.lower() for name in ignored}
    return [
        dataclasses.replace(check, level=WARNING)
        if check.level == ERROR and ("all" in lowered or check.name.lower() in lowered)
        else check
        for check in checks
    ]


def _bind(number: int) -> None:
    """As Go listens: on every address, IPv6 and IPv4, or IPv4 alone where there is no IPv6."""
    family = socket.AF_INET6 if os.path.exists("/proc/net/if_inet6") else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("", number))
        server.listen(1)


def _cgroups() -> list[str] | None:
    """The controllers that the running kernel offers, None where that cannot be seen."""
    unified = _node_files.read("/", "/sys/fs/cgroup/cgroup.controllers")
    if unified is not None:
        return [*unified.split(), *CGROUPS_WITHOUT_CONTROLLER]
    rows = [line.split() for line in (_node_files.read("/", "/proc/cgroups") or "").splitlines()]
    return [row[0] for row in rows if len(row) >= 4 and row[3] != "0" and not row[0].startswith("#")] or None


def cgroup_checks(found: list[str] | None) -> list[Check]:
    if found is None:
        return [Check("SystemVerification", ERROR, "failed to get cgroup subsystems")]
    missing = [name for name in CGROUPS if name not in found]
    checks = [Check("SystemVerification", ERROR, f"missing cgroups: {' '.join(missing)}")] if missing else []
    if "hugetlb" not in found:
        checks.append(Check("SystemVerification", WARNING, "missing optional cgroups: hugetlb"))
    return checks


def kernel_checks(release: str, config: t.Mapping[str, str] | None) -> list[Check]:
    name = "SystemVerification"
    if config is None:
        message = f"no configuration of kernel {release} is found (/boot/config-{release})"
        return [Check(name, WARNING, message)]

    def absent(settings: t.Sequence[str]) -> list[str]:
        return [each for each in settings if not any(config.get(one) in ("y", "m") for one in each.split("|"))]

    required, optional = absent(KERNEL_REQUIRED), absent(KERNEL_OPTIONAL)
    checks = [Check(name, ERROR, f"kernel {release} lacks {', '.join(required)}")] if required else []
    if optional:
        checks.append(Check(name, WARNING, f"kernel {release} lacks {', '.join(optional)} (optional)"))
    return checks


def judge_cri(code: int, out: str, err: str) -> Check:
    """Of `crictl info`: the conditions of the runtime's status."""
    try:
        conditions = json.loads(out)["status"]["conditions"] if code == 0 else []
    except (ValueError, LookupError, TypeError):
        conditions = []
    ready = [each for each in conditions if each.get("type") == "RuntimeReady"]
    if ready and ready[0].get("status"):
        return Check("CRI", PASSED, "RuntimeReady")
    reason = (ready[0].get("message") if ready else "") or (
        err.strip().splitlines() or ["no RuntimeReady in its status"]
    )[-1]
    return Check("CRI", ERROR, f"container runtime is not running: {reason}")


def read_environment(root: str) -> dict[str, str]:
    """/etc/environment: what a login, and kubeadm in it, will have."""
    text = _node_files.read(root, "/etc/environment") or ""
    pairs = re.findall(r"^\s*(?:export\s+)?(\w+)=[\"']?(.*?)[\"']?\s*$", text, re.MULTILINE)
    return dict(pairs)


def proxy_for(address: str, environment: t.Mapping[str, str]) -> str:
    """The proxy of an HTTPS connection to an address, as Go decides; empty for a direct one."""
    proxy = environment.get("HTTPS_PROXY") or environment.get("https_proxy") or ""
    target = ipaddress.ip_address(address)
    if target.is_loopback:
        return ""
    for entry in (environment.get("NO_PROXY") or environment.get("no_proxy") or "").split(","):
        entry = entry.strip()
        if entry == "*":
            return ""
        try:
            if entry and target in ipaddress.ip_network(entry, strict=False):
                return ""
        except ValueError:
            continue
    return proxy


def proxy_check(name: str, target: str, environment: t.Mapping[str, str]) -> Check:
    network = ipaddress.ip_network(target, strict=False)
    address = network[1] if network.num_addresses > 1 else network[0]
    proxy = proxy_for(str(address), environment)
    if not proxy:
        return Check(name, PASSED, f"{target} is reached directly")
    # A proxy may have a password in it.
    shown = re.sub(r"//[^/@]*@", "//***@", proxy)
    return Check(
        name, WARNING, f'connection to "{target}" uses proxy "{shown}"; add it to NO_PROXY if that is not intended'
    )


def validate(question: Question) -> None:
    try:
        for subnet in question.subnets:
            ipaddress.ip_network(subnet, strict=False)
        if question.advertise_address:
            ipaddress.ip_address(question.advertise_address)
    except ValueError as error:
        raise PreflightError(f"not a network or an address: {error}") from error
    if not os.path.isdir(question.root):
        raise PreflightError(
            f"{question.root}: no such folder; 'root' is the folder that holds the system's etc and usr"
        )
