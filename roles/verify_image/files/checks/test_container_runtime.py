# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""containerd runs, with the configuration that Kubernetes and the CNIs need, and can run a container."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomllib

if TYPE_CHECKING:
    from testinfra.host import Host

IMAGE = "goldsmith.test/busybox:check"
GREETING = "the container speaks"
# containerd that a release comes with, at least; of others, the oldest that kubelets speak with.
VERSIONS = {"bookworm": "1.6.20", "trixie": "1.7.23"}

# One script for all questions: a command in an emulated guest is slow.
GATHER = r"""
set -u
section() { printf '\n@@ %s\n' "$1"; }
section unit; systemctl show --property=ActiveState,UnitFileState,NRestarts containerd.service
section version; containerd --version
section runtimes; for name in runc crun; do command -v "$name" >/dev/null && "$name" --version; done
section config; containerd config dump
section plugins; ctr plugins ls
section status; python3 -c "$2" 2>&1
section crictl_yaml; cat /etc/crictl.yaml
section cni; for name in "$1"/*; do [ -x "$name" ] && [ -f "$name" ] && basename "$name"; done
section end
"""

# What a kubelet asks first, RuntimeService/Status, over gRPC. Images have no crictl, and not all have curl.
STATUS = r"""
import socket

def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

HEADERS = {
    ":method": "POST", ":scheme": "http", ":authority": "localhost", ":path": "/runtime.v1.RuntimeService/Status",
    "content-type": "application/grpc", "te": "trailers",
}
fields = b"".join(b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in pair) for pair in HEADERS.items())
client = socket.socket(socket.AF_UNIX)
client.settimeout(60)
client.connect("/run/containerd/containerd.sock")
# An empty request, and the end of the stream.
frames = frame(4, 0, 0, b"") + frame(1, 4, 1, fields) + frame(0, 1, 1, bytes(5))
client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames)
answer, answered = client.makefile("rb"), b""
while True:
    head = answer.read(9)
    payload = answer.read(int.from_bytes(head[:3], "big"))
    kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
    if stream == 1 and kind == 0:
        answered += payload
    if stream == 1 and flags & 1 or kind in (3, 7):
        break
print(answered)
"""
# Of the answer: a condition of that name (field 1) whose status (field 2) is true; protobuf leaves out what is false.
READY = r"\x0cRuntimeReady\x10\x01"

# The container's cgroup is looked at from outside, while it runs: inside it has a cgroup namespace of its own.
RUN = r"""
set -u
name=goldsmith-check-$$
log=$(mktemp)
task() { ctr --namespace k8s.io tasks ls | awk -v name="$name" '$1 == name { print $2, $3 }'; }
wait_for() {
    deadline=$(($(date +%s) + 90))
    until "$@" >/dev/null 2>&1 || [ "$(date +%s)" -gt "$deadline" ]; do sleep 0.2; done
}
printf '@@ run\n'
ctr --namespace k8s.io run --detach --runc-binary "$(command -v "$3")" --runc-systemd-cgroup --log-uri "file://$log" \
    --cgroup "system.slice:goldsmith:$name" "$1" "$name" \
    /bin/busybox sh -c "echo '$2'; exec /bin/busybox sleep 600" 2>&1
wait_for grep -q "$2" "$log"
printf '@@ output\n'; cat "$log"; rm -f "$log"
found=$(task)
pid=${found% *}
printf '@@ task\n%s\n' "$found"
printf '@@ cgroup\n'; [ -n "$pid" ] && cat "/proc/$pid/cgroup"
printf '@@ scope\n'; systemctl show --property=Id,ActiveState,Slice "goldsmith-$name.scope"
printf '@@ restart\n'; systemctl restart containerd.service 2>&1 && echo done
wait_for ctr version
printf '@@ task_after_restart\n'; task
printf '@@ remove\n'
ctr --namespace k8s.io tasks rm --force "$name" 2>&1
ctr --namespace k8s.io containers rm "$name" 2>&1
ctr --namespace k8s.io images rm "$1" >/dev/null
printf '@@ left\n'; ctr --namespace k8s.io containers ls --quiet | grep -Fx "$name"
[ -d "/proc/$pid" ] && echo "process $pid"
printf '@@ end\n'
"""


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^@@ (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _properties(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", text)
    assert found, f"no version in {text!r}"
    return tuple(int(part) for part in found.groups())


@pytest.fixture(scope="module")
def cni_bin_dir(expect: dict[str, Any]) -> str:
    return str(expect.get("cni_bin_dir", "/opt/cni/bin"))


@pytest.fixture(scope="module")
def runtime(host: Host, cni_bin_dir: str) -> dict[str, str]:
    """What the machine says of its container runtime."""
    return _sections(host.run("sh -c %s sh %s %s", GATHER, cni_bin_dir, STATUS).stdout)


@pytest.fixture(scope="module")
def config(runtime: dict[str, str]) -> dict[str, Any]:
    """The effective configuration, with everything that was merged into it."""
    return tomllib.loads(runtime["config"])


@pytest.fixture(scope="module")
def cri(config: dict[str, Any]) -> dict[str, Any]:
    """The few settings that matter, wherever this version of the configuration has them."""
    plugins = config["plugins"]
    if "io.containerd.grpc.v1.cri" in plugins and config["version"] == 2:
        section = plugins["io.containerd.grpc.v1.cri"]
        runtimes, cni, sandbox = section["containerd"], section["cni"], section["sandbox_image"]
    else:
        section = plugins["io.containerd.cri.v1.runtime"]
        runtimes, cni = section["containerd"], section["cni"]
        sandbox = plugins["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"]
    options = runtimes["runtimes"][runtimes["default_runtime_name"]].get("options", {})
    return {
        "runtimes": runtimes["runtimes"],
        "default": runtimes["default_runtime_name"],
        "program": options.get("BinaryName") or "runc",
        "cni": cni,
        "sandbox": sandbox,
    }


@pytest.mark.reboot
def test_containerd_is_enabled_and_runs(runtime: dict[str, str]) -> None:
    state = _properties(runtime["unit"])
    assert (state["UnitFileState"], state["ActiveState"], state["NRestarts"]) == ("enabled", "active", "0")


def test_version(runtime: dict[str, str], cri: dict[str, Any], expect: dict[str, Any]) -> None:
    oldest = VERSIONS.get(expect.get("distribution_release") or "trixie", "1.6.0")
    wanted = _version(str(expect.get("containerd_minimum_version", oldest)))
    assert _version(runtime["version"]) >= wanted
    assert f"{Path(cri['program']).name} version" in runtime["runtimes"]


def test_every_runc_runtime_uses_the_systemd_cgroup_driver(cri: dict[str, Any]) -> None:
    drivers = {
        name: values.get("options", {}).get("SystemdCgroup")
        for name, values in cri["runtimes"].items()
        if values.get("runtime_type", "").startswith("io.containerd.runc.")
    }
    assert cri["default"] in drivers
    assert set(drivers.values()) == {True}, drivers


def test_cni_directories(cri: dict[str, Any], cni_bin_dir: str) -> None:
    # The first that has a plugin wins, and an old one of the distribution must not win over a CNI's own.
    found = cri["cni"].get("bin_dirs") or [cri["cni"]["bin_dir"]]
    assert found[0] == cni_bin_dir
    assert cri["cni"]["conf_dir"] == "/etc/cni/net.d"


def test_sandbox_image(cri: dict[str, Any], expect: dict[str, Any]) -> None:
    wanted = expect.get("sandbox_image")
    assert cri["sandbox"] == wanted if wanted else re.search(r"pause:3\.\d+", cri["sandbox"])


@pytest.mark.reboot
def test_the_cri_plugin_works(config: dict[str, Any], runtime: dict[str, str]) -> None:
    assert not [name for name in config.get("disabled_plugins", []) if name == "cri" or ".cri" in name]
    rows = [line.split() for line in runtime["plugins"].splitlines()[1:]]
    states = {f"{row[0]}.{row[1]}": row[-1] for row in rows if len(row) >= 3}
    interesting = {name: state for name, state in states.items() if "cri" in re.split(r"[.]", name)}
    assert interesting, runtime["plugins"]
    assert set(interesting.values()) == {"ok"}, interesting
    assert states.get("io.containerd.snapshotter.v1.overlayfs") == "ok"


@pytest.mark.reboot
def test_the_cri_answers_that_the_runtime_is_ready(runtime: dict[str, str]) -> None:
    assert READY in runtime["status"]


def test_cni_plugins_are_there(runtime: dict[str, str]) -> None:
    missing = {"loopback", "bridge", "host-local", "portmap", "bandwidth", "tuning"} - set(runtime["cni"].split())
    assert not missing


def test_crictl_knows_the_socket(runtime: dict[str, str]) -> None:
    endpoint = "unix:///run/containerd/containerd.sock"
    lines = runtime["crictl_yaml"].splitlines()
    assert f"runtime-endpoint: {endpoint}" in lines
    assert f"image-endpoint: {endpoint}" in lines


def _static_busybox() -> bytes:
    path = shutil.which("busybox", path="/bin:/usr/bin")
    content = Path(path).read_bytes() if path else b""
    # A dynamically linked program names its loader.
    if not content or b"ld-linux" in content[:4096] or b"ld-musl" in content[:4096]:
        pytest.fail("this machine has no static busybox to make an image of; install the package busybox-static")
    return content


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _docker_archive(busybox: bytes) -> bytes:
    """An image of one file, as `docker save` writes it; nothing is fetched from anywhere."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        _add(archive, "bin/busybox", busybox, 0o755)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/busybox"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).encode()
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        _add(archive, "layer.tar", layer.getvalue())
        _add(archive, name, config)
        _add(archive, "manifest.json", manifest)
    return whole.getvalue()


@pytest.fixture(scope="module")
def container(host: Host, ssh_command: list[str], cri: dict[str, Any]) -> dict[str, str]:
    """What was seen of a container of the default runtime, while it ran and when containerd had been restarted."""
    imported = subprocess.run(
        [*ssh_command, "sudo -n ctr --namespace k8s.io images import -"],
        input=_docker_archive(_static_busybox()),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert imported.returncode == 0, imported.stderr.decode(errors="replace")
    answer = host.run("sh -c %s sh %s %s %s", RUN, IMAGE, GREETING, cri["program"])
    found = _sections(answer.stdout)
    assert found.get("output") == GREETING, f"{answer.stdout}\n{answer.stderr}"
    return found


def test_a_container_runs_in_a_systemd_cgroup(container: dict[str, str]) -> None:
    # crun makes another cgroup in the scope.
    scope_of_it = r"0::/system\.slice/goldsmith-goldsmith-check-\d+\.scope(/container)?"
    assert re.fullmatch(scope_of_it, container["cgroup"]), container
    scope = _properties(container["scope"])
    assert (scope["ActiveState"], scope["Slice"]) == ("active", "system.slice")
    assert container["left"] == ""


def test_a_container_outlives_a_restart_of_containerd(container: dict[str, str]) -> None:
    assert container["restart"].endswith("done"), container
    assert re.fullmatch(r"\d+ RUNNING", container["task"]), container
    assert container["task_after_restart"] == container["task"]
