# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions, command lines, variables and environment for Packer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _packer_cli as cli
from ansible_collections.goldsmith.images.plugins.module_utils._packer_cli import PackerError, Request
from ansible_collections.goldsmith.images.plugins.module_utils._packer_run import prepare
from ansible_collections.goldsmith.images.plugins.modules import packer_build

FIXTURES = Path(__file__).parents[2] / "fixtures" / "packer"


def request(kind: str = "hcl", **more: object) -> Request:
    return Request(template="/w/t.pkr.hcl", kind=kind, chdir="/w", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("output", "version"),
    [("Packer v1.6.6\n", (1, 6, 6)), ("Packer v1.16.0-dev\n\nYour version is out of date", (1, 16, 0))],
)
def test_version(output: str, version: cli.Version) -> None:
    assert cli.parse_version(output) == version


@pytest.mark.parametrize("output", ["", "cracklib-packer 2.9\n", "packer v1.6.6"])
def test_another_program_of_that_name(output: str) -> None:
    with pytest.raises(PackerError, match="not HashiCorp Packer"):
        cli.parse_version(output)


def test_build_command_has_its_flags_before_the_template() -> None:
    wanted = request(
        only=("a", "b"), force=True, on_error="abort", parallel_builds=2, var_files=("/w/x.json",), variables={"a": 1}
    )
    assert cli.build_command("packer", wanted, "/tmp/v.json") == [
        "packer",
        "build",
        "-machine-readable",
        "-only=a,b",
        "-force",
        "-on-error=abort",
        "-parallel-builds=2",
        "-var-file=/w/x.json",
        "-var-file=/tmp/v.json",
        "/w/t.pkr.hcl",
    ]
    assert "-only=b" in cli.build_command("packer", wanted, "", ["b"])
    assert not {"-force", "-on-error=abort"} & set(cli.validate_command("packer", wanted, ""))


INIT = [
    ((1, 6, 6), "auto", "hcl", False),
    ((1, 6, 6), "upgrade", "hcl", False),
    ((1, 7, 0), "auto", "hcl", True),
    ((1, 7, 0), "never", "hcl", False),
    ((1, 12, 0), "auto", "json", False),
]


@pytest.mark.parametrize(("version", "init", "kind", "runs"), INIT)
def test_init_only_where_it_exists(version: cli.Version, init: str, kind: str, runs: bool) -> None:
    assert bool(cli.init_command("packer", request(kind), version, init)) is runs


def test_init_upgrade() -> None:
    assert "-upgrade" in cli.init_command("packer", request(), (1, 9, 0), "upgrade")


def test_variables_keep_their_types_for_hcl_and_become_text_for_json() -> None:
    values = {"a": True, "b": 1, "c": [1, {"x": "y"}], "d": '${z} "q" ü'}
    assert json.loads(cli.var_file_content(request(variables=values))) == values
    plain = {"a": True, "b": 1.5, "d": "x"}
    expected = {"a": "true", "b": "1.5", "d": "x"}
    assert json.loads(cli.var_file_content(request("json", variables=plain))) == expected


def test_variable_given_twice() -> None:
    with pytest.raises(PackerError, match="both have pw"):
        cli.var_file_content(request(variables={"pw": 1}, sensitive={"pw": 2}))


def test_environment_of_an_outer_packer_does_not_leak() -> None:
    outer = {
        "PACKER_WRAP_COOKIE": "x",
        "PACKER_RUN_UUID": "y",
        "PACKER_LOG": "1",
        "PACKER_LOG_PATH": "/l",
        "HOME": "/h",
    }
    environment = cli.packer_environment(outer, request(cache_dir="/c", plugin_path="/p"), "/tmp/gp-x")
    assert environment == {
        "HOME": "/h",
        "CHECKPOINT_DISABLE": "1",
        "TMPDIR": "/tmp/gp-x",
        "PACKER_CACHE_DIR": "/c",
        "PACKER_PLUGIN_PATH": "/p",
    }
    assert cli.packer_environment({}, request(packer_log=True), "/t")["PACKER_LOG"] == "1"


def test_long_temporary_directory_is_not_used(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    assert cli.private_base({"TMPDIR": str(long)}) == "/tmp"
    with pytest.raises(PackerError, match=r"too long.*not writable"):
        cli.private_base({"TMPDIR": str(long)}, ["/nonexistent"])


NOEXEC = """
import sys
from ansible_collections.goldsmith.images.plugins.module_utils import _packer_cli
try:
    _packer_cli.private_base({}, [sys.argv[1]])
except _packer_cli.PackerError as exc:
    print(exc)
"""


def test_temporary_directory_must_allow_programs(tmp_path: Path) -> None:
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    mount = 'mount -t tmpfs -o noexec none "$0" && exec "$@" "$0"'
    command = [*unshare, "sh", "-c", mount, tmp_path, sys.executable, "-c", NOEXEC]
    path = {"PYTHONPATH": str(Path(cli.__file__).parents[5])}
    done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True, check=True)
    assert done.stdout == f"no usable directory for temporary files: {tmp_path} (mounted noexec)\n"


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that all can enter, with a file and a directory that nobody can use."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "t.pkr.hcl").touch(0o644)
        (directory / "vars.json").touch(0o000)
        (directory / "cache").mkdir(0o555)
        yield directory


def refusal(call: Callable[[], object]) -> str:
    """What a call is refused with when the user is not root, for whom everything is readable."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            call()
        except PackerError as exc:
            os.write(write, str(exc).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as stream:
        return stream.read()


def test_what_cannot_be_read_or_written_is_named(closed: Path) -> None:
    def call(**more: object) -> Callable[[], object]:
        defaults = {name: option.get("default") for name, option in packer_build.argument_spec().items()}
        places = {"template": str(closed / "t.pkr.hcl"), "state_path": "/tmp/none/state.json"}
        return lambda: prepare({**defaults, **places, **more})

    assert not refusal(call())
    assert refusal(call(var_files=["vars.json"])) == f"var_files: {closed}/vars.json is not readable"
    assert refusal(call(template=str(closed / "vars.json"))) == f"template: {closed}/vars.json is not readable"
    assert refusal(call(cache_dir="cache/x")) == f"cache_dir: {closed}/cache/x is not writable"
    for name in ("state_path", "log_path", "progress_path"):
        assert refusal(call(**{name: "x"})) == f"{name}: {closed} is not writable"


NEWER = [
    pytest.param("warn_on_undeclared_variables", (1, 8, 7), (1, 9, 0), "1.9", {"build"}, id="1.9"),
    pytest.param("ignore_prerelease_plugins", (1, 10, 3), (1, 11, 0), "1.11", {"build", "validate"}, id="1.11"),
    pytest.param(
        "use_sequential_evaluation", (1, 11, 2), (1, 12, 0), "1.12", {"build", "validate", "inspect"}, id="1.12"
    ),
]


@pytest.mark.parametrize(("name", "too_old", "new", "since", "commands"), NEWER)
def test_option_of_a_later_version(
    name: str, too_old: cli.Version, new: cli.Version, since: str, commands: set[str]
) -> None:
    wanted = request(flags=(name,))
    cli.check_flags(wanted, new)
    with pytest.raises(PackerError, match=f"{name} needs Packer {since} or later, found 1"):
        cli.check_flags(wanted, too_old)
    built = {
        "build": cli.build_command("packer", wanted, ""),
        "validate": cli.validate_command("packer", wanted, ""),
        "inspect": cli.inspect_command("packer", wanted),
    }
    assert {command for command, argv in built.items() if cli.FLAGS[name].text in argv} == commands


def test_builds_and_variables_of_a_template() -> None:
    output = (FIXTURES / "inspect.txt").read_text()
    assert cli.inspected_builds(output) == ["img.file.a", "img.null.n"]
    assert cli.inspected_variables(output) == ["pw"]
    unnamed = (
        "> builds:\n\n  > <unnamed build 0>:\n\n    sources:\n\n      qemu.t\n\n    provisioners:\n\n      shell\n"
    )
    assert cli.inspected_builds(unnamed) == ["qemu.t"]
    template = '{"variables": {"a": ""}, "builders": [{"type": "qemu"}, {"type": "null", "name": "n"}]}'
    assert cli.template_builds(template) == {"qemu": "qemu", "n": "null"}
    assert cli.template_variables(template) == ["a"]
    assert cli.template_builds("{") == {}
    assert cli.template_variables("{") is None
