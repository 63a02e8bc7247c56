# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A build that is ended before its time, in every way and in every phase, with the real Packer and the real QEMU."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.packer_build import (
    QEMU_TEMPLATE,
    Module,
    marked,
    needs_packer,
    needs_qemu,
    playbook_command,
    write_playbook,
)
from ansible_collections.goldsmith.images.tests.support.processes import wait_until

pytestmark = [needs_packer, needs_qemu]

PHASES = ("validate", "download", "boot", "provision", "convert")
# guard: SIGKILL also for the process that cleans up after a killed module. connection: nobody reads its output.
ENDS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL", "guard", "time-out", "connection")
# In each phase once, in each way once; the rest is for the full matrix.
QUICK = {
    ("validate", "SIGTERM"),
    ("download", "SIGHUP"),
    ("boot", "SIGINT"),
    ("boot", "SIGKILL"),
    ("provision", "connection"),
    ("provision", "guard"),
    ("convert", "time-out"),
}
MATRIX = [
    pytest.param(phase, end, marks=() if (phase, end) in QUICK else pytest.mark.slow_matrix)
    for phase, end in itertools.product(PHASES, ENDS)
]

PREVIOUS = b"the image of the last build"
# Says that it has been reached, then takes its time.
STUCK = "touch reached; sleep 300"
CONVERTER = f"""#!/bin/sh
# The first time the disk is copied for the machine, the second time to the output.
if [ "$1" = convert ] && [ -e copied ]; then {STUCK}; fi
if [ "$1" = convert ]; then touch copied; fi
exec {shutil.which("qemu-img")} "$@"
"""
IN_BUILD = {
    "validate": """
  provisioner "ansible" {
    command       = "./stuck"  # is asked for its version
    playbook_file = "stuck"
  }""",
    "provision": f"""
  provisioner "shell-local" {{
    inline = ["{STUCK}"]
  }}""",
}
SSH = 'communicator     = "ssh"\n  ssh_username     = "u"\n  ssh_password     = "p"'


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def slow_server(work: Path) -> Iterator[str]:
    """The address of a disk whose download begins and never ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        clients = []

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    clients.append(server.accept()[0])
                    request = clients[-1].recv(4096)
                    head = "HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\nConnection: close\r\n\r\n"
                    clients[-1].sendall(head.encode() + b"\0" * 512)
                    if request.startswith(b"GET"):
                        (work / "reached").touch()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/disk.raw"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for client in clients:
            client.close()


def kill_with_guard(module: Module) -> None:
    """Leave nobody who could end the build."""
    children = Path(f"/proc/{module.process.pid}/task/{module.process.pid}/children").read_text().split()
    # The guard is a fork of the module, Packer is not. It goes first: it needs no second to see that it is alone.
    for pid in map(int, children):
        if b"packer_build" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    module.process.kill()
    module.process.communicate(timeout=60)


@pytest.mark.parametrize(("phase", "end"), MATRIX)
def test_nothing_is_left_and_nothing_is_lost(
    collections_path: str,
    tmp_path: Path,
    qemu_template: Path,
    no_leftovers: dict[str, str],
    slow_server: str,
    phase: str,
    end: str,
) -> None:
    work, mark = qemu_template.parent, no_leftovers["MARK"]
    image = work / "out/t.qcow2"
    image.parent.mkdir()
    image.write_bytes(PREVIOUS)
    script(work / "stuck", f"#!/bin/sh\n{STUCK}\n")
    (work / "bin").mkdir()
    environment = dict(no_leftovers)
    if phase == "convert":
        script(work / "bin/qemu-img", CONVERTER)
        environment["PATH"] = f"{work}/bin:{os.environ['PATH']}"
    text = QEMU_TEMPLATE.rstrip().removesuffix("}") + IN_BUILD.get(phase, "") + "\n}\n"
    if phase == "validate":
        # Packer does not look at the provisioners when the output is there already.
        text = text.replace('"out"', '"other"')
    elif phase == "boot":
        text = text.replace('communicator     = "none"', SSH)
    qemu_template.write_text(text)
    params: dict[str, Any] = {
        "template": str(qemu_template),
        "variables": {"disk": {"download": slow_server, "convert": "off.raw"}.get(phase, "hang.raw")},
        "force": True,
        "progress_path": str(work / "progress.json"),
        "console_log": "console.log",
        "cancel_grace": 5,
        "environment": environment,
    }

    def reached() -> bool:
        if phase == "boot":
            # Not the qemu-img that prepares the disk.
            return any("qemu-system" in command and "out/t.qcow2" in command for command in marked(mark))
        return (work / "reached").exists()

    seconds = 15 if phase == "convert" else 8
    module = Module(collections_path, tmp_path, **params, timeout=seconds if end == "time-out" else 0)
    wait_until(reached, 60, f"phase {phase}")
    if end == "guard":
        kill_with_guard(module)
    elif end == "SIGKILL":
        module.process.kill()
        module.process.communicate(timeout=60)
    elif end == "connection":
        assert module.process.stdout
        module.process.stdout.close()
        module.process.wait(timeout=60)
    else:
        if end != "time-out":
            module.process.send_signal(signal.Signals[end])
        result = module.result()
        assert result["failed"]
        assert result["cancelled"]
        assert result["timed_out"] is (end == "time-out")
        assert (f"timed out after {seconds} s" if end == "time-out" else f"cancelled ({end})") in result["msg"]
        assert f"in phase {phase}" in result["msg"]
        assert {item["status"] for item in result["builds"]} <= {"cancelled"}
    if end == "guard":
        # Nobody is left who could end the build: the next run does.
        assert marked(mark)
    else:
        wait_until(lambda: not marked(mark), 60, "the end of the build")
        wait_until(lambda: image.exists() and image.read_bytes() == PREVIOUS, 10, "the previous image")
        wait_until(lambda: not os.listdir(no_leftovers["TMPDIR"]), 10, "removal of the temporary files")

    qemu_template.write_text(QEMU_TEMPLATE)
    params["environment"] = no_leftovers
    if end == "guard":
        failed = Module(collections_path, tmp_path, **{**params, "variables": {"disk": "none.raw"}}).result()
        assert failed["failed"]
        assert "ended what an earlier, interrupted run had left behind" in str(failed["warnings"])
        assert not marked(mark)
        assert image.read_bytes() == PREVIOUS
    params["variables"] = {"disk": "off.raw"}
    after = Module(collections_path, tmp_path, **params).result()
    assert not after.get("failed"), after
    assert after["changed"]
    assert image.read_bytes()[:4] == b"QFI\xfb"
    assert not list(work.glob("out.*"))


def hang_params(qemu_template: Path, environment: dict[str, str]) -> dict[str, Any]:
    return {
        "template": str(qemu_template),
        "variables": {"disk": "hang.raw"},
        "progress_path": str(qemu_template.parent / "progress.json"),
        "console_log": "console.log",
        "cancel_grace": 5,
        "environment": environment,
    }


def test_timeout_tells_phase_and_leaves_nothing(
    collections_path: str, tmp_path: Path, qemu_template: Path, no_leftovers: dict[str, str]
) -> None:
    (qemu_template.parent / "console.log").write_text("old\n" * 60 + "login:\r\n")
    text = QEMU_TEMPLATE.replace('"file:console.log"', '"null"')
    qemu_template.write_text(text)
    result = Module(collections_path, tmp_path, **hang_params(qemu_template, no_leftovers), timeout=5).result()
    assert result["failed"]
    assert result["timed_out"]
    assert "timed out after 5 s in phase shutdown" in result["msg"]
    assert len(result["console"]) == 50
    assert result["console"][-1] == "login:"
    assert result["duration"] < 12


def test_interrupt_of_ansible_playbook_ends_the_build(
    ansible_env: dict[str, str], tmp_path: Path, qemu_template: Path, no_leftovers: dict[str, str]
) -> None:
    temporary = Path(ansible_env["ANSIBLE_REMOTE_TMP"])
    before = set(temporary.glob("ansible-tmp-*"))  # of other tests, which kill what cannot clean up then
    playbook = write_playbook(
        tmp_path / "play.yml",
        **hang_params(qemu_template, no_leftovers),
    )
    process = subprocess.Popen(
        playbook_command(ansible_env, playbook),
        env=ansible_env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(
        lambda: any("out/t.qcow2" in command for command in marked(no_leftovers["MARK"])), 60, "the virtual machine"
    )
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    wait_until(lambda: not marked(no_leftovers["MARK"]), 60, "the end of the build")
    assert set(temporary.glob("ansible-tmp-*")) <= before


def test_death_of_the_controller_ends_the_build(
    ansible_env: dict[str, str], tmp_path: Path, qemu_template: Path, no_leftovers: dict[str, str]
) -> None:
    """SIGKILL for everything of Ansible: only the closed pipe tells the module."""
    playbook = write_playbook(tmp_path / "play.yml", **hang_params(qemu_template, no_leftovers))
    process = subprocess.Popen(
        playbook_command(ansible_env, playbook), env=ansible_env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(
        lambda: any("out/t.qcow2" in command for command in marked(no_leftovers["MARK"])), 60, "the virtual machine"
    )
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, workers)]:
        os.kill(pid, signal.SIGKILL)
    process.wait(timeout=60)
    wait_until(lambda: not marked(no_leftovers["MARK"]), 60, "the end of the build")


def test_half_an_output_of_a_killed_run_is_no_obstacle(
    collections_path: str, tmp_path: Path, qemu_template: Path, no_leftovers: dict[str, str]
) -> None:
    """Without force, where nobody was left to clean up: what was not there before that run is its own."""
    params = hang_params(qemu_template, no_leftovers)
    module = Module(collections_path, tmp_path, **params)
    wait_until(lambda: any("out/t.qcow2" in command for command in marked(no_leftovers["MARK"])), 60, "the machine")
    kill_with_guard(module)
    work = qemu_template.parent
    params["variables"] = {"disk": "off.raw"}
    checked = Module(collections_path, tmp_path, **params, _ansible_check_mode=True).result()
    assert checked["changed"], checked
    assert (work / "out").exists()
    made = Module(collections_path, tmp_path, **params).result()
    assert made["changed"], made
    assert f"{work}/out.failed now" in str(made["warnings"])
    again = Module(collections_path, tmp_path, **params, rebuild="always").result()
    assert "force=true" in again["msg"], "an output that is whole is never taken away"
