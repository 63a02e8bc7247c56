# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams recorded from Packer 1.6.6, and what must be read out of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._packer_stream import (
    Event,
    Report,
    builder_type,
    diagnostics,
    existing_outputs,
    main_error,
    parse_line,
    split_name,
    undefined_variables,
)

FIXTURES = Path(__file__).parents[2] / "fixtures" / "packer"


def read(name: str) -> Report:
    report = Report()
    for number, line in enumerate((FIXTURES / f"{name}.txt").read_text().splitlines()):
        report.feed(line, float(number))
    return report


LINES = [
    pytest.param("1,,ui,say,a%!(PACKER_COMMA) b\\nc", Event("", "ui", ("say", "a, b\nc")), id="escapes"),
    pytest.param("1,img.file.a,artifact,0,id,File", Event("img.file.a", "artifact", ("0", "id", "File")), id="target"),
    pytest.param("1,a,b,artifact,0,end", Event("a,b", "artifact", ("0", "end")), id="comma-in-a-name"),
    pytest.param("1,,ui,say,", Event("", "ui", ("say", "")), id="empty"),
    pytest.param("panic: runtime error", None, id="crash"),
    pytest.param("goroutine 1, locked, ui", None, id="crash-with-commas"),
]


@pytest.mark.parametrize(("line", "event"), LINES)
def test_parse_line(line: str, event: Event | None) -> None:
    assert parse_line(line) == event


def test_artifacts_are_listed_once_although_manifest_repeats_them() -> None:
    report = read("success")
    assert {name: build.status for name, build in report.builds.items()} == {
        "img.file.a": "success",
        "img.null.n": "success",
    }
    file, null = report.artifacts
    assert (file.build, file.builder_id, file.id, file.files) == ("img.file.a", "packer.file", "File", ["out/a.txt"])
    assert (null.builder_id, null.files) == ("fnoeding.null", [])
    assert report.builds["img.file.a"].seconds is not None


def test_stderr_of_a_provisioner_is_not_an_error() -> None:
    assert ("img.file.a", "oops") in read("success").ui_errors
    assert not read("success").errors


def test_phases_of_a_qemu_build() -> None:
    report, phases = Report(), []
    for line in (FIXTURES / "qemu_success.txt").read_text().splitlines():
        report.feed(line, 0.0)
        if report.phase and report.phase not in phases[-1:]:
            phases.append(report.phase)
    assert phases == ["download", "boot", "shutdown", "convert"]
    assert report.artifacts[0].files == ["out-q/t.qcow2"]
    assert builder_type("qemu.t", {}) == "qemu"


def test_partial_failure() -> None:
    report = read("partial_failure")
    assert {name: build.status for name, build in report.builds.items()} == {
        "img.file.a": "success",
        "img.null.n": "failed",
    }
    message = "img.null.n: Script exited with non-zero exit status: 3.Allowed exit codes are: [0]"
    assert main_error(report) == message
    assert report.builds["img.null.n"].phase == "provision"


def test_cancelled_build_is_neither_failed_nor_made() -> None:
    report = read("qemu_cancelled")
    report.cancel()
    assert [build.status for build in report.builds.values()] == ["cancelled"]
    assert not report.artifacts


ERRORS = [
    ("ssh_timeout", "null.n: Timeout waiting for SSH."),
    ("qemu_force_download_failed", "qemu.t: error downloading ISO: [source path error: stat /srv/nope.raw"),
    ("validate_unset_variable", 'Unset variable "pw"'),
    ("validate_bad_argument", 'An argument named "bogus" is not expected here.'),
    ("validate_required_plugins", 'Blocks of type "required_plugins" are not expected here.'),
    ("usage", "did not understand its command line"),
]


@pytest.mark.parametrize(("name", "message"), ERRORS)
def test_the_error_that_matters(name: str, message: str) -> None:
    error = main_error(read(name))
    assert message in error
    assert "Usage:" not in error
    assert "source code not available" not in error


def test_phase_of_a_timeout_is_boot() -> None:
    assert read("ssh_timeout").phase == "boot"


def test_existing_output_is_told_from_other_errors() -> None:
    for name, existing in (("qemu_validate_exists", ["out-q"]), ("validate_bad_argument", [])):
        blocks = [block for unused, text in read(name).ui_errors for block in diagnostics(text)]
        errors = [block for block in blocks if block.severity == "Error"]
        assert errors
        assert [existing_outputs(block) for block in errors] == [existing] * len(errors)


def test_undefined_variables_are_named() -> None:
    blocks = [block for text in read("validate_undefined_variable").tail for block in diagnostics(text)]
    assert undefined_variables(blocks) == ["zzz"]


def test_undefined_variable_in_the_words_of_later_versions() -> None:
    text = """Warning: Undefined variable

The variable "zzz" was set but was not declared as an input variable.
To declare variable "zzz" place this block in one of your .pkr.hcl files, such as variables.pkr.hcl
"""
    assert undefined_variables(diagnostics(text)) == ["zzz"]


def test_only_that_matches_nothing_leaves_no_builds() -> None:
    assert not read("only_matches_nothing").builds


def test_names_and_text_of_multi_line_messages() -> None:
    assert split_name("==> a.b: one\n==> a.b: two") == ("a.b", "one\ntwo")
    assert split_name("\n==> Builds finished. The artifacts of successful builds are:")[0] == ""


def test_ansible_headings_are_the_last_message_and_failures_the_reason() -> None:
    report = Report()
    for text in (
        "ui,say,==> q.t: Provisioning with Ansible...",
        "ui,message,    q.t: PLAY [all] ****",
        "ui,message,    q.t: TASK [hardening : Write sysctls] ****",
        "ui,message,    q.t: changed: [default]",
    ):
        report.feed("1,," + text, 0.0)
    assert report.last == "TASK [hardening : Write sysctls]"
    assert report.phase == "provision"
    report.feed('1,,ui,message,    q.t: fatal: [default]: FAILED! => {"msg": "no space"}', 0.0)
    report.feed("1,q.t,error,Error executing Ansible: Non-zero exit status: exit status 2", 0.0)
    assert main_error(report) == (
        "q.t: Error executing Ansible: Non-zero exit status: exit status 2"
        ' (TASK [hardening : Write sysctls]: fatal: [default]: FAILED! => {"msg": "no space"})'
    )
