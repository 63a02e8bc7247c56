# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""packer_build against the real Packer, and for virtual machines the real QEMU with a boot sector as its disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [
    pytest.mark.skipif(shutil.which("packer") is None, reason="packer is not installed"),
]
needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")

Result = dict[str, Any]

# Waits for about two seconds of timer ticks, then tells the emulated chipset to power off.
POWER_OFF = bytes.fromhex("fb31c08ed8a16c0405250089c3f43b1e6c0477f9ba0406b80020eff4ebfd")
# Interrupts off, halt: nothing ever happens again.
HANG = bytes.fromhex("faf4ebfd")

FILE_TEMPLATE = """
variable "text" { default = "hello" }
variable "pw" {
  type      = string
  default   = "none-given"
  sensitive = true
}
source "file" "a" {
  content = "${var.text}"
  target  = "out/a.txt"
}
build {
  name    = "img"
  sources = ["source.file.a"]
}
"""

QEMU_TEMPLATE = """
variable "disk" { default = "off.raw" }
source "qemu" "t" {
  disk_image       = true
  iso_url          = var.disk
  iso_checksum     = "none"
  disk_size        = "1M"
  format           = "qcow2"
  accelerator      = "tcg"
  headless         = true
  memory           = 32
  disable_vnc      = true
  communicator     = "none"
  shutdown_timeout = "5m"
  output_directory = "out"
  vm_name          = "t.qcow2"
  qemuargs         = [["-serial", "file:console.log"]]
}
build {
  sources = ["source.qemu.t"]
}
"""

SHELL_TEMPLATE = """
variable "pw" {
  type      = string
  sensitive = true
}
variable "rc" { default = "0" }
source "null" "n" { communicator = "none" }
build {
  sources = ["source.null.n"]
  provisioner "shell-local" {
    # Not environment_vars: Packer puts those on a command line.
    inline = ["cat <<'E'", var.pw, "E", "cat >&2 <<'E'", var.pw, "E", "sleep 1.5", "exit ${var.rc}"]
  }
}
"""


def boot_disk(path: Path, code: bytes) -> None:
    path.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    (path / "out").mkdir(parents=True)
    return path


@pytest.fixture
def file_template(work: Path) -> Path:
    path = work / "file.pkr.hcl"
    path.write_text(FILE_TEMPLATE)
    return path


@pytest.fixture
def qemu_template(work: Path) -> Path:
    (work / "out").rmdir()
    boot_disk(work / "off.raw", POWER_OFF)
    boot_disk(work / "hang.raw", HANG)
    path = work / "q.pkr.hcl"
    path.write_text(QEMU_TEMPLATE)
    return path


def marked(mark: str) -> list[str]:
    """Command lines of all processes that have the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


@pytest.fixture
def no_leftovers() -> Iterator[dict[str, str]]:
    """An environment for the build; afterwards no process has it and nothing is left in its temporary directory."""
    with tempfile.TemporaryDirectory(prefix="gpt-", dir="/tmp") as directory:
        environment = {"MARK": uuid.uuid4().hex, "TMPDIR": directory}
        yield environment
        wait_until(lambda: not marked(environment["MARK"]), 60, "the end of all processes of the build")
        wait_until(lambda: not os.listdir(directory), 5, f"removal of {os.listdir(directory)}")


class Module:
    """The module's own file run as Ansible runs it, without Ansible around it: for signals to the module itself."""

    def __init__(self, collections_path: str, tmp_path: Path, **params: Any) -> None:
        arguments = tmp_path / "args.json"
        arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": params}))
        self.progress = Path(params["progress_path"])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ansible_collections.goldsmith.images.plugins.modules.packer_build", str(arguments)],
            env={**os.environ, "PYTHONPATH": collections_path.split(os.pathsep)[0]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_phase(self, phase: str) -> None:
        def reached() -> bool:
            with contextlib.suppress(OSError, ValueError):
                return phase in [item["phase"] for item in json.loads(self.progress.read_text())["phases"]]
            return False

        wait_until(reached, 30, f"phase {phase}")

    def result(self) -> Result:
        out, err = self.process.communicate(timeout=30)
        assert out, err
        return json.loads(out)


def write_playbook(path: Path, **params: Any) -> Path:
    tasks = [{"name": "Build", "goldsmith.images.packer_build": params}]
    play = {"name": "Test", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    play["vars"] = {"ansible_python_interpreter": sys.executable}
    path.write_text(yaml.safe_dump([play]))
    return path


def playbook_command(env: dict[str, str], playbook: Path, *arguments: str) -> list[str]:
    command = shutil.which("ansible-playbook", path=env["PATH"])
    assert command
    return [command, "-i", "localhost,", str(playbook), *arguments]


# --- the file builder: idempotency, check mode, bad input ----------------------------------------------------------


def test_builds_once_and_says_why_it_builds_again(run_module: Callable[..., Result], file_template: Path) -> None:
    work = file_template.parent
    (work / "script.sh").write_text("one")
    params: dict[str, Any] = {
        "template": str(file_template),
        "inputs": ["script.sh"],
        "variables": {"text": "hi"},
        "sensitive_variables": {"pw": "first-secret"},
    }

    checked = run_module("packer_build", **params, _check=True)
    assert checked["changed"]
    assert not (work / "out/a.txt").exists()
    assert not (work / ".packer_build").exists()

    made = run_module("packer_build", **params)
    assert made["changed"], made
    content = (work / "out/a.txt").read_bytes()
    assert content == b"hi"
    assert made["builds"][0]["name"] == "img.file.a"
    assert made["builds"][0]["status"] == "success"
    assert made["builds"][0]["builder_type"] == "file"
    (artifact,) = made["artifacts"]
    (file,) = artifact["files"]
    assert file == {"path": str(work / "out/a.txt"), "size": 2, "sha256": hashlib.sha256(content).hexdigest()}
    stamp = Path(made["state_path"])
    assert stamp.stat().st_mode & 0o777 == 0o600

    os.utime(file_template)
    again = run_module("packer_build", **params)
    assert not again["changed"]
    assert again["artifacts"] == made["artifacts"]
    assert not run_module("packer_build", **params, _check=True)["changed"]

    def rebuilt(because: str) -> None:
        predicted = run_module("packer_build", **params, _check=True, _diff=True)
        assert predicted["changed"]
        assert because in predicted["diff"]["after"]
        result = run_module("packer_build", **params)
        assert result["changed"], result
        assert because in result["reason"]
        assert "secret" not in result["reason"]

    file_template.write_text(FILE_TEMPLATE + "\n")
    rebuilt("files changed: file.pkr.hcl")
    (work / "script.sh").write_text("two")
    rebuilt("files changed: script.sh")
    params["sensitive_variables"] = {"pw": "second-secret"}
    rebuilt("variables changed: pw")
    (work / "out/a.txt").unlink()
    rebuilt("artifact is missing")
    (work / "out/a.txt").write_bytes(b"ho")
    rebuilt("content of the artifact changed")
    stamp.write_text(stamp.read_text()[:50])
    rebuilt("cannot be read")


BAD_INPUT = [
    pytest.param({"template": "nope.pkr.hcl"}, "nope.pkr.hcl does not exist", id="template-missing"),
    pytest.param({"template": "out"}, "has no *.pkr.hcl", id="template-directory-empty"),
    pytest.param({"var_files": ["nope.json"]}, "nope.json does not exist", id="var-file-missing"),
    pytest.param({"var_files": ["notes.txt"]}, "must end in", id="var-file-extension"),
    pytest.param({"only_builds": ["a"], "except_builds": ["b"]}, "mutually exclusive", id="only-and-except"),
    pytest.param({"only_builds": ["*.zzz"]}, "there are: img.file.a", id="only-matches-nothing"),
    pytest.param({"variables": {"zzz": 1}}, "zzz; it declares: pw, text", id="variable-undeclared"),
    pytest.param({"sensitive_variables": {"pw": {"a": "TOPSECRET"}}}, "not valid", id="variable-type"),
    pytest.param({"executable": "packer-nope"}, "apt-get install packer", id="packer-missing"),
    pytest.param({"executable": "true"}, "not HashiCorp Packer", id="another-packer"),
    pytest.param({"timeout": -1}, "must not be negative", id="timeout-negative"),
    pytest.param({"on_error": "ask"}, "value of on_error must be one of", id="on-error-ask"),
    pytest.param({"inputs": ["nope/*"]}, "nothing matches", id="inputs-nothing"),
    pytest.param({"template": "plugins.pkr.hcl"}, "needs Packer 1.7", id="required-plugins"),
    pytest.param({"template": "old.json", "variables": {"a": [1]}}, "only know strings", id="json-list"),
    pytest.param({"template": "old.json", "variables": {"b": "x"}}, "it declares: a", id="json-undeclared"),
]


@pytest.mark.parametrize(("params", "message"), BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_built(
    collections_path: str, tmp_path: Path, file_template: Path, params: dict[str, Any], message: str
) -> None:
    work = file_template.parent
    (work / "notes.txt").write_text("")
    (work / "plugins.pkr.hcl").write_text("packer {\n  required_plugins {\n  }\n}\n" + FILE_TEMPLATE)
    old = {"variables": {"a": ""}, "builders": [{"type": "file", "content": "x", "target": "out/a.txt"}]}
    (work / "old.json").write_text(json.dumps(old))
    all_params = {"template": file_template.name, "chdir": str(work), "progress_path": str(tmp_path / "p"), **params}
    result = Module(collections_path, tmp_path, **all_params).result()
    assert result["failed"]
    assert message in result["msg"]
    assert "TOPSECRET" not in json.dumps({**result, "invocation": ""})
    assert not list((work / "out").iterdir())


def test_partial_failure_keeps_the_good_build_and_repeats_only_the_bad_one(
    run_module: Callable[..., Result], work: Path
) -> None:
    (work / "two.pkr.hcl").write_text(
        FILE_TEMPLATE.replace('["source.file.a"]', '["source.file.a", "source.null.n"]').rstrip().removesuffix("}")
        + """
  provisioner "shell-local" {
    only   = ["null.n"]
    inline = ["echo not the reason >&2; test -e fixed"]
  }
}
source "null" "n" { communicator = "none" }
"""
    )
    failed = run_module("packer_build", template=str(work / "two.pkr.hcl"))
    assert failed["failed"]
    assert failed["changed"]
    assert "Script exited with non-zero exit status" in failed["msg"]
    assert "phase provision" in failed["msg"]
    assert {build["name"]: build["status"] for build in failed["builds"]} == {
        "img.file.a": "success",
        "img.null.n": "failed",
    }
    assert [item["build"] for item in failed["artifacts"]] == ["img.file.a"]
    assert failed["errors"][0]["build"] == "img.null.n"

    (work / "fixed").touch()
    repaired = run_module("packer_build", template=str(work / "two.pkr.hcl"))
    assert not repaired["failed"], repaired
    assert "-only=img.null.n" in repaired["cmd"]
    assert {build["status"] for build in repaired["builds"]} == {"success"}
    assert not run_module("packer_build", template=str(work / "two.pkr.hcl"))["changed"]


def test_broken_source_among_good_ones_builds_nothing(run_module: Callable[..., Result], work: Path) -> None:
    broken = FILE_TEMPLATE + '\nsource "null" "n" { bogus = 1 }\nbuild { sources = ["source.null.n"] }\n'
    (work / "broken.pkr.hcl").write_text(broken)
    result = run_module("packer_build", template=str(work / "broken.pkr.hcl"))
    assert result["failed"]
    assert result["phase"] == "validate"
    assert "bogus" in result["msg"]
    assert not (work / "out/a.txt").exists()


# --- secrets -------------------------------------------------------------------------------------------------------

CANARY = "c4nary"
SECRETS = [
    pytest.param(f"{CANARY}-plain", "0", id="plain"),
    pytest.param(f"{CANARY},{CANARY}x,y", "0", id="comma"),
    pytest.param(f"{CANARY} line 1\nsecond {CANARY}\n\nlast {CANARY}, end\n", "0", id="multi-line"),
    pytest.param(f"{CANARY} \"double\" 'single' <&> \\ ${{x}}", "0", id="quotes"),
    pytest.param(f"{CANARY}-gr\u00fc\u00dfe-\u2603", "0", id="non-ascii"),
    pytest.param(f"{CANARY}-failing\nbuild", "3", id="failing"),
]


@pytest.mark.parametrize(("secret", "rc"), SECRETS)
def test_secret_is_found_nowhere(
    ansible_env: dict[str, str], tmp_path: Path, work: Path, no_leftovers: dict[str, str], secret: str, rc: str
) -> None:
    (work / "shell.pkr.hcl").write_text(SHELL_TEMPLATE)
    playbook = write_playbook(
        tmp_path / "play.yml",
        template=str(work / "shell.pkr.hcl"),
        variables={"rc": rc},
        sensitive_variables={"pw": secret},
        log_path="build.log",
        progress_path="progress.json",
        packer_log=True,
        environment=no_leftovers,
    )
    seen: set[str] = set()
    with (tmp_path / "terminal").open("w") as terminal:
        process = subprocess.Popen(
            playbook_command(ansible_env, playbook, "-vvv"), env=ansible_env, stdout=terminal, stderr=terminal
        )
        while process.poll() is None:
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    seen.add((entry / "cmdline").read_bytes().decode(errors="replace"))
            time.sleep(0.05)
    output = (tmp_path / "terminal").read_text()
    assert process.returncode == (0 if rc == "0" else 2), output
    assert "********" in (work / "build.log").read_text()
    assert any("shell.pkr.hcl" in command for command in seen)
    assert not [command for command in seen if CANARY in command]
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != playbook]
    assert {path.name for path in written} >= {"build.log", "progress.json", "terminal"}
    for path in written:
        assert CANARY not in path.read_text(errors="replace"), path


# --- virtual machines: artifacts, progress, cancelling --------------------------------------------------------------


@needs_qemu
def test_qemu_image_with_phases_and_live_lines(
    ansible_env: dict[str, str], run_module: Callable[..., Result], tmp_path: Path, qemu_template: Path
) -> None:
    work = qemu_template.parent
    playbook = write_playbook(tmp_path / "play.yml", template=str(qemu_template))
    env = {**ansible_env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
    done = subprocess.run(
        playbook_command(env, playbook), env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.findall(r"^\[localhost\] \d+:\d\d (\w+)", done.stdout, flags=re.MULTILINE)
    assert shown == ["validate", "build", "download", "boot", "shutdown", "convert"]

    unchanged = run_module("packer_build", template=str(qemu_template))
    assert not unchanged["changed"]
    (file,) = unchanged["artifacts"][0]["files"]
    image = work / "out/t.qcow2"
    assert file["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert image.read_bytes()[:4] == b"QFI\xfb"

    # The output is there: an error without force, in check mode as well, and none with it.
    for check in (True, False):
        refused = run_module("packer_build", template=str(qemu_template), rebuild="always", _check=check)
        assert refused["failed"]
        assert "force=true" in refused["msg"]
    assert run_module("packer_build", template=str(qemu_template), rebuild="always", force=True, _check=True)["changed"]


@needs_qemu
def test_terminal_gets_one_updated_line(ansible_env: dict[str, str], tmp_path: Path, qemu_template: Path) -> None:
    playbook = write_playbook(tmp_path / "play.yml", template=str(qemu_template))
    env = {**ansible_env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "TERM": "xterm"}
    pid, terminal = pty.fork()
    if pid == 0:
        command = playbook_command(env, playbook)
        os.execve(command[0], command, env)
    output = b""
    with contextlib.suppress(OSError):  # EIO: the last process has closed the terminal
        while chunk := os.read(terminal, 4096):
            output += chunk
    assert os.waitpid(pid, 0)[1] == 0, output
    updates = re.findall(rb"\r\x1b\[K(\[localhost\][^\r\x1b]*)", output)
    assert any(b" boot qemu.t: " in update for update in updates)
    assert not any(b"\n" in update for update in updates[:-1])


def hang_params(qemu_template: Path, environment: dict[str, str]) -> dict[str, Any]:
    work = qemu_template.parent
    return {
        "template": str(qemu_template),
        "variables": {"disk": "hang.raw"},
        "sensitive_variables": {},
        "progress_path": str(work / "progress.json"),
        "console_log": "console.log",
        "cancel_grace": 5,
        "environment": environment,
    }


@needs_qemu
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_signal_to_the_module_ends_the_whole_build(
    collections_path: str, tmp_path: Path, qemu_template: Path, no_leftovers: dict[str, str], signum: signal.Signals
) -> None:
    params = hang_params(qemu_template, no_leftovers)
    module = Module(collections_path, tmp_path, **params)
    module.wait_for_phase("boot")
    wait_until(
        lambda: any("out/t.qcow2" in command for command in marked(no_leftovers["MARK"])), 60, "the virtual machine"
    )
    module.process.send_signal(signum)
    if signum != signal.SIGKILL:
        result = module.result()
        assert result["cancelled"]
        assert not result["timed_out"]
        assert f"cancelled ({signum.name})" in result["msg"]
        assert result["builds"][0]["status"] == "cancelled"
        assert "qemu-system" in result["qemu_command"][0]
        assert "file=out/t.qcow2" in " ".join(result["qemu_command"])
    wait_until(lambda: not marked(no_leftovers["MARK"]), 60, "the end of the build")

    # The next run is not in the way of what was left, and succeeds.
    params["variables"] = {"disk": "off.raw"}
    after = Module(collections_path, tmp_path, **params, force=True).result()
    assert not after.get("failed"), after
    assert after["changed"]


@needs_qemu
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


@needs_qemu
def test_interrupt_of_ansible_playbook_ends_the_build(
    ansible_env: dict[str, str], tmp_path: Path, qemu_template: Path, no_leftovers: dict[str, str]
) -> None:
    temporary = Path(ansible_env["ANSIBLE_REMOTE_TMP"])
    before = set(temporary.glob("ansible-tmp-*"))  # of other tests, which kill what cannot clean up then
    playbook = write_playbook(
        tmp_path / "play.yml",
        **{**hang_params(qemu_template, no_leftovers), "sensitive_variables": {}, "variables": {"disk": "hang.raw"}},
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


@needs_qemu
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


def test_two_runs_on_one_state_file(
    collections_path: str, tmp_path: Path, work: Path, no_leftovers: dict[str, str]
) -> None:
    (work / "shell.pkr.hcl").write_text(SHELL_TEMPLATE)
    params: dict[str, Any] = {
        "template": str(work / "shell.pkr.hcl"),
        "sensitive_variables": {"pw": "something"},
        "progress_path": str(tmp_path / "progress.json"),
        "environment": no_leftovers,
    }
    first = Module(collections_path, tmp_path, **params)
    first.wait_for_phase("provision")
    second = Module(collections_path, tmp_path, **params).result()
    assert f"another run (process {first.process.pid})" in second["msg"]
    assert not first.result().get("failed")
