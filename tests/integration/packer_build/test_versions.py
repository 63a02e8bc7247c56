# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of Packer that are not installed: what they are asked, and what is made of their answers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented, packer_stand_in
from ansible_collections.goldsmith.images.tests.support.packer_build import Result, needs_packer

FIXTURES = Path(__file__).parents[2] / "unit" / "fixtures" / "packer"
Build = Callable[..., Result]
FLAGS = {
    "warn_on_undeclared_variables": ("-warn-on-undeclared-var", "1.9.0"),
    "ignore_prerelease_plugins": ("-ignore-prerelease-plugins", "1.11.0"),
    "use_sequential_evaluation": ("-use-sequential-evaluation", "1.12.0"),
}
VERSIONS = ["1.7.0", "1.8.7", "1.9.5", "1.10.3", "1.11.2", "1.12.0", "1.15.1", "1.16.0"]

UNDECLARED = """\
1,,ui,say,Warning: Undefined variable\\n\\nThe variable "zzz" was set but was not declared as an input variable.\\n\
To declare variable "zzz" place this block in one of your .pkr.hcl files%!(PACKER_COMMA) such as variables.pkr.hcl\\n
1,,ui,say,The configuration is valid.
"""
MISSING_PLUGINS = """\
1,,ui,error,Error: Missing plugins\\n\\nThe following plugins are required%!(PACKER_COMMA) but not installed:\\n\\n\
* github.com/hashicorp/qemu >= 1.1.0\\n\\nDid you run packer init for this project ?\\n\\n
"""
NO_BUILDS = """\
1,,ui,error,Error: No builds to run\\n\\nA build command cannot run without at least one build to process. If the only \
or except flags have been specified at run time check that at least one build is selected for execution.\\n\\n
"""
CRASH = """\
panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x20 pc=0x12c4a3f]
goroutine 1 [running]:
!!!!!!!!!!!!!!!!!!!!!!!!!!! PACKER CRASH !!!!!!!!!!!!!!!!!!!!!!!!!!!!
"""


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


@needs_packer
@pytest.mark.parametrize("command", sorted(packer_stand_in.OPTIONS))
def test_stand_in_takes_what_the_real_one_takes(tmp_path: Path, command: str) -> None:
    stand_in = packer_stand_in.make(tmp_path / "stand-in", "1.6.6")
    every = sorted({name for options in packer_stand_in.OPTIONS.values() for name in options})

    def refused(program: str | Path, *arguments: str) -> bool:
        done = subprocess.run(
            [program, command, *arguments, "none.pkr.hcl"],
            cwd=tmp_path,
            env={**os.environ, "CHECKPOINT_DISABLE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        text = done.stdout + done.stderr
        return done.returncode == 127 or "flag provided but not defined" in text or "\nUsage: packer" in f"\n{text}"

    real = subprocess.run(["packer", "version"], capture_output=True, text=True, check=True).stdout
    if not real.startswith("Packer v1.6.6"):
        pytest.skip(f"the stand-in knows what 1.6.6 takes; here is {real.strip()}")
    for option in [] if command == "version" else every:
        argument = f"{option}={packer_stand_in.VALUES[option]}" if option in packer_stand_in.VALUES else option
        assert refused(stand_in, argument) == refused("packer", argument), argument
    assert refused(stand_in) == refused("packer")


@pytest.mark.parametrize(
    "number",
    [VERSIONS[0], *(pytest.param(number, marks=pytest.mark.slow_matrix) for number in VERSIONS[1:-1]), VERSIONS[-1]],
)
def test_build_with_a_later_version(build: Build, file_template: Path, tmp_path: Path, number: str) -> None:
    stand_in = tmp_path / "stand-in"
    wanted = {name: True for name, (_flag, since) in FLAGS.items() if version(number) >= version(since)}
    params: dict[str, Any] = {
        "template": str(file_template),
        "variables": {"text": "x"},
        "only_builds": ["img.*"],
        "on_error": "abort",
        "parallel_builds": 2,
        "force": True,
        **wanted,
    }
    answers = {
        "inspect": {"text": (FIXTURES / "inspect.txt").read_text()},
        "validate": {"text": "1,,ui,say,The configuration is valid.\n"},
        "validate_before_init": {"text": MISSING_PLUGINS, "rc": 1},
        "build": {"text": (FIXTURES / "success.txt").read_text()},
    }
    params["executable"] = str(packer_stand_in.make(stand_in, number, **answers))
    (file_template.parent / "out/a.txt").write_text("made")

    checked = build(**params, _ansible_check_mode=True)
    assert checked["changed"], checked
    assert "would first install" in str(checked["warnings"])
    documented.check_returned("packer_build", checked)
    assert "init" not in [call[0] for call in packer_stand_in.calls(stand_in)]

    made = build(**params)
    assert made["changed"], made
    assert made["packer_version"] == number
    assert [item["build"] for item in made["artifacts"]] == ["img.file.a", "img.null.n"]
    documented.check_returned("packer_build", made)
    commands = {call[0]: call for call in packer_stand_in.calls(stand_in)}
    assert list(commands) == ["version", "inspect", "validate", "init", "build"]
    for name, (flag, _since) in FLAGS.items():
        assert (flag in commands["build"]) is (name in wanted)
    assert not build(**params)["changed"]

    for name in set(FLAGS) - set(wanted):
        refused = build(**params, **{name: True})
        assert f"{name} needs Packer {FLAGS[name][1].removesuffix('.0')} or later, found {number}" in refused["msg"]

    following = f"1.{version(number)[1] + 1}.0"
    packer_stand_in.make(stand_in, following, **answers)
    newer = build(**params)
    assert newer["changed"], newer
    assert f"Packer's version changed from {number.rpartition('.')[0]} to" in newer["reason"]


FAILURES = [
    pytest.param(
        {"init": "never"},
        dict(validate={"text": MISSING_PLUGINS, "rc": 1}),
        "packer plugins install --path",
        "validate",
        id="plugins-missing",
    ),
    pytest.param(
        {},
        dict(init={"text": "1,,ui,error,Failed getting the qemu plugin\n", "rc": 1}),
        "packer init failed: Failed getting the qemu plugin",
        "init",
        id="init",
    ),
    pytest.param(
        {"variables": {"zzz": 1}},
        dict(validate={"text": UNDECLARED}, inspect={"text": '> input-variables:\n\nvar.pw: "x"\n'}),
        "the template does not declare the variable(s) zzz; it declares: pw",
        "validate",
        id="variable-undeclared",
    ),
    pytest.param({}, dict(build={"text": NO_BUILDS, "rc": 1}), "No builds to run", "build", id="no-builds"),
    pytest.param({}, dict(build={"text": CRASH, "rc": 2}), "Packer crashed", "build", id="crash"),
    pytest.param({}, dict(build={"text": ""}), "no build was run", "build", id="nothing-said"),
]


@pytest.mark.parametrize(("params", "answers", "message", "phase"), FAILURES)
def test_failure_of_a_later_version(
    build: Build,
    file_template: Path,
    tmp_path: Path,
    params: dict[str, Any],
    answers: dict[str, dict[str, Any]],
    message: str,
    phase: str,
) -> None:
    executable = packer_stand_in.make(tmp_path / "stand-in", "1.12.0", **answers)
    result = build(template=str(file_template), executable=str(executable), **params)
    assert result["failed"]
    assert not result["changed"]
    assert message in result["msg"]
    assert result["phase"] == phase
    documented.check_returned("packer_build", result)
    if "crashed" in message:
        assert any("SIGSEGV" in line for line in result["stdout_tail"])


@pytest.mark.parametrize(("init", "expected"), [("auto", ["init"]), ("upgrade", ["init", "-upgrade"]), ("never", [])])
def test_plugins_are_installed_as_asked(
    build: Build, file_template: Path, tmp_path: Path, init: str, expected: list[str]
) -> None:
    executable = packer_stand_in.make(tmp_path / "stand-in", "1.9.5")
    build(template=str(file_template), executable=str(executable), init=init)
    called = [call for call in packer_stand_in.calls(tmp_path / "stand-in") if call[0] == "init"]
    wanted = [[expected[0], "-machine-readable", *expected[1:], str(file_template)]] if expected else []
    assert called == wanted
