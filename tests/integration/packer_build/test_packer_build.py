# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""packer_build against the real Packer: idempotency, check mode, bad input, failures, what it returns."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.packer_build import (
    FILE_TEMPLATE,
    QEMU_TEMPLATE,
    SHELL_TEMPLATE,
    Module,
    Result,
    boot_disk,
    needs_packer,
    needs_qemu,
)

pytestmark = needs_packer
Build = Callable[..., Result]
CHECK = {"_ansible_check_mode": True}


def test_builds_once_and_says_why_it_builds_again(build: Build, file_template: Path) -> None:
    work = file_template.parent
    (work / "script.sh").write_text("one")
    params: dict[str, Any] = {
        "template": str(file_template),
        "inputs": ["script.sh"],
        "variables": {"text": "1"},
        "sensitive_variables": {"pw": "first-secret"},
    }

    checked = build(**params, **CHECK)
    assert checked["changed"]
    documented.check_returned("packer_build", checked)
    assert not (work / "out/a.txt").exists()
    assert not (work / ".packer_build").exists()

    made = build(**params)
    assert made["changed"], made
    documented.check_returned("packer_build", made)
    content = (work / "out/a.txt").read_bytes()
    assert content == b"1"
    assert made["builds"][0]["name"] == "img.file.a"
    assert made["builds"][0]["status"] == "success"
    assert made["builds"][0]["builder_type"] == "file"
    (artifact,) = made["artifacts"]
    (file,) = artifact["files"]
    assert file == {"path": str(work / "out/a.txt"), "size": 1, "sha256": hashlib.sha256(content).hexdigest()}
    stamp = Path(made["state_path"])
    assert stamp.stat().st_mode & 0o777 == 0o600

    os.utime(file_template)
    again = build(**params)
    assert not again["changed"]
    assert again["artifacts"] == made["artifacts"]
    documented.check_returned("packer_build", again)
    assert not build(**params, **CHECK)["changed"]

    def rebuilt(because: str) -> None:
        predicted = build(**params, **CHECK)
        assert predicted["changed"]
        assert because in predicted["diff"]["after"]
        result = build(**params)
        assert result["changed"], result
        assert because in result["reason"]
        assert "secret" not in result["reason"]
        assert not build(**params)["changed"]

    file_template.write_text(FILE_TEMPLATE + "\n")
    rebuilt("files changed: file.pkr.hcl")
    (work / "script.sh").write_text("two")
    rebuilt("files changed: script.sh")
    params["variables"] = {"text": 1}
    rebuilt("variables changed: text")
    params["sensitive_variables"] = {"pw": "second-secret"}
    rebuilt("variables changed: pw")
    (work / "out/a.txt").unlink()
    rebuilt("artifact is missing")
    (work / "out/a.txt").write_bytes(b"")
    rebuilt("size of the artifact changed")
    (work / "out/a.txt").write_bytes(b"2")
    rebuilt("content of the artifact changed")
    stamp.unlink()
    rebuilt("no earlier build is recorded")
    stamp.write_text(stamp.read_text()[:50])
    rebuilt("cannot be read")
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "schema": 99}))
    rebuilt("is of another version")
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "created": 1 << 40}))
    assert not build(**params)["changed"], "the clock says nothing about what was built"


def test_variable_of_the_environment_causes_a_build_when_it_changes(
    build: Build, file_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the module's environment, where the keyword of the task puts it, and in the option of that name."""
    out = file_template.parent / "out/a.txt"
    for text in ("one", "two"):
        monkeypatch.setenv("PKR_VAR_text", text)
        if text == "two":
            assert "variables changed: PKR_VAR_text" in build(template=str(file_template), **CHECK)["reason"]
        assert build(template=str(file_template))["changed"]
        assert out.read_text() == text
        assert not build(template=str(file_template))["changed"]
    made = build(template=str(file_template), environment={"PKR_VAR_text": "three"})
    assert "variables changed: PKR_VAR_text" in made["reason"]
    assert out.read_text() == "three"
    assert "three" not in Path(made["state_path"]).read_text()


BAD_INPUT = [
    pytest.param({"template": "nope.pkr.hcl"}, "nope.pkr.hcl does not exist", id="template-missing"),
    pytest.param({"template": "out"}, "has no *.pkr.hcl", id="template-directory-empty"),
    pytest.param({"var_files": ["nope.json"]}, "nope.json does not exist", id="var-file-missing"),
    pytest.param({"var_files": ["notes.txt"]}, "must end in", id="var-file-extension"),
    pytest.param({"only_builds": ["a"], "except_builds": ["b"]}, "mutually exclusive", id="only-and-except"),
    pytest.param({"only_builds": ["*.zzz"]}, "there are: img.file.a", id="only-matches-nothing"),
    pytest.param({"variables": {"zzz": 1}}, "zzz; it declares: pw, text", id="variable-undeclared"),
    pytest.param({"sensitive_variables": {"pw": {"a": "TOPSECRET"}}}, "not valid", id="variable-type"),
    pytest.param({"var_files": ["."]}, "is not a file", id="var-file-a-directory"),
    pytest.param({"template": "old.json", "var_files": ["x.hcl"]}, "takes only JSON", id="var-file-language"),
    pytest.param({"template": "old.json", "only_builds": ["b"]}, "there are: file", id="json-only-matches-nothing"),
    pytest.param({"except_builds": ["*"]}, "no build is left; there are: img.file.a", id="except-matches-everything"),
    pytest.param({"template": "old.json", "only_builds": ["f*"]}, "there are: file", id="json-knows-no-globs"),
    pytest.param({"template": "old.json", "except_builds": ["file"]}, "no build is left", id="json-except-everything"),
    pytest.param({"cache_dir": "notes.txt/cache"}, "notes.txt is not a directory", id="cache-dir"),
    pytest.param({"log_path": "nope/log"}, "nope does not exist", id="log-directory"),
    pytest.param({"log_path": "out"}, "out is not a file", id="log-is-a-directory"),
    pytest.param({"log_path": "/dev/null"}, "/dev/null is not a file", id="log-is-a-device"),
    pytest.param({"progress_path": "nope/p"}, "nope does not exist", id="progress-directory"),
    pytest.param({"progress_path": "out"}, "out is not a file", id="progress-is-a-directory"),
    pytest.param({"state_path": "notes.txt/s"}, "notes.txt is not a directory", id="state-directory"),
    pytest.param({"state_path": "out"}, "out is not a file", id="state-is-a-directory"),
    pytest.param({"parallel_builds": -1}, "must not be negative", id="parallel-negative"),
    pytest.param({"cancel_grace": -1}, "must not be negative", id="grace-negative"),
    pytest.param({"use_sequential_evaluation": True}, "needs Packer 1.12 or later, found 1.6.6", id="option-1.12"),
    pytest.param({"ignore_prerelease_plugins": True}, "needs Packer 1.11 or later, found 1.6.6", id="option-1.11"),
    pytest.param({"warn_on_undeclared_variables": True}, "needs Packer 1.9 or later, found 1.6.6", id="option-1.9"),
    pytest.param({"executable": "packer-nope"}, "apt-get install packer", id="packer-missing"),
    pytest.param({"executable": "true"}, "not HashiCorp Packer", id="another-packer"),
    pytest.param({"timeout": -1}, "must not be negative", id="timeout-negative"),
    pytest.param({"on_error": "ask"}, "value of on_error must be one of", id="on-error-ask"),
    pytest.param({"inputs": ["nope/*"]}, "nothing matches", id="inputs-nothing"),
    pytest.param({"template": "plugins.pkr.hcl"}, "needs Packer 1.7", id="required-plugins"),
    pytest.param({"template": "old.json", "variables": {"a": [1]}}, "only know strings", id="json-list"),
    pytest.param({"template": "old.json", "variables": {"a": {"b": 1}}}, "only know strings", id="json-dictionary"),
    pytest.param({"template": "old.json", "variables": {"b": "x"}}, "it declares: a", id="json-undeclared"),
]


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
@pytest.mark.parametrize(("params", "message"), BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_built(
    build: Build, file_template: Path, params: dict[str, Any], message: str, check: bool
) -> None:
    work = file_template.parent
    (work / "notes.txt").write_text("")
    (work / "x.hcl").write_text("")
    (work / "plugins.pkr.hcl").write_text("packer {\n  required_plugins {\n  }\n}\n" + FILE_TEMPLATE)
    old = {"variables": {"a": ""}, "builders": [{"type": "file", "content": "x", "target": "out/a.txt"}]}
    (work / "old.json").write_text(json.dumps(old))
    result = build(**{"template": file_template.name, "chdir": str(work), "_ansible_check_mode": check, **params})
    assert result["failed"], result
    assert message in result["msg"]
    assert "TOPSECRET" not in json.dumps({**result, "invocation": ""})
    assert not list((work / "out").iterdir())


def test_partial_failure_keeps_the_good_build_and_repeats_only_the_bad_one(build: Build, work: Path) -> None:
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
    failed = build(template=str(work / "two.pkr.hcl"))
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
    documented.check_returned("packer_build", failed)

    (work / "fixed").touch()
    repaired = build(template=str(work / "two.pkr.hcl"))
    assert not repaired.get("failed"), repaired
    assert "-only=img.null.n" in repaired["cmd"]
    assert {build["status"] for build in repaired["builds"]} == {"success"}
    assert not build(template=str(work / "two.pkr.hcl"))["changed"]


def test_broken_source_among_good_ones_builds_nothing(build: Build, work: Path) -> None:
    broken = FILE_TEMPLATE + '\nsource "null" "n" { bogus = 1 }\nbuild { sources = ["source.null.n"] }\n'
    (work / "broken.pkr.hcl").write_text(broken)
    result = build(template=str(work / "broken.pkr.hcl"))
    assert result["failed"]
    assert result["phase"] == "validate"
    assert "bogus" in result["msg"]
    assert not (work / "out/a.txt").exists()


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
    for check in (True, False):
        second = Module(collections_path, tmp_path, _ansible_check_mode=check, **params).result()
        assert f"another run (process {first.process.pid})" in second["msg"]
    assert not first.result().get("failed")
    params["progress_path"] = ""
    assert not Module(collections_path, tmp_path, _ansible_check_mode=True, **params).result()["changed"]


def test_legacy_json_template(build: Build, work: Path, tmp_path: Path) -> None:
    """Typed variables become text, a manifest does not double the artifact, and a long TMPDIR does not crash Packer."""
    template = {
        "variables": {"number": "", "flag": ""},
        "builders": [{"type": "file", "content": "{{user `number`}} {{user `flag`}}", "target": "out/a.txt"}],
        "post-processors": [{"type": "manifest", "output": "manifest.json"}],
    }
    (work / "old.json").write_text(json.dumps(template))
    temporary = tmp_path / ("long" * 25)
    temporary.mkdir()
    params: dict[str, Any] = {"template": str(work / "old.json"), "environment": {"TMPDIR": str(temporary)}}
    made = build(**params, variables={"number": 12, "flag": True})
    assert made["changed"], made
    assert (work / "out/a.txt").read_text() == "12 true"
    assert [(item["build"], item["builder_id"]) for item in made["artifacts"]] == [("file", "packer.file")]
    assert made["builds"][0]["builder_type"] == "file"
    assert not build(**params, variables={"number": 12, "flag": True})["changed"]


def test_undeclared_variable_is_let_through_when_asked(build: Build, file_template: Path) -> None:
    assert build(template=str(file_template), variables={"zzz": 1}, strict_variables=False)["changed"]


def test_artifact_that_is_reported_but_not_there_is_a_failure(build: Build, file_template: Path) -> None:
    out = file_template.parent / "out/a.txt"
    assert build(template=str(file_template))["changed"]
    post = 'post-processor "shell-local" {\n inline = ["rm out/a.txt"]\n }'
    file_template.write_text(FILE_TEMPLATE.rstrip().removesuffix("}") + post + "\n}\n")
    result = build(template=str(file_template), variables={"text": "new"})
    assert result["failed"], result
    assert f"{out}, but it does not exist" in result["msg"]
    assert out.read_text() == "hello"


@needs_qemu
def test_replaced_output_is_there_until_the_new_one_is(build: Build, qemu_template: Path) -> None:
    work = qemu_template.parent
    image = work / "out/t.qcow2"
    (work / "out").mkdir()
    image.write_text("previous")
    (work / "broken.pkr.hcl").write_text(
        QEMU_TEMPLATE.rstrip().removesuffix("}") + 'provisioner "shell-local" {\n inline = ["exit 3"]\n }\n}\n'
    )
    params: dict[str, Any] = {"template": str(work / "broken.pkr.hcl"), "force": True}

    refused = build(**{**params, "force": False})
    assert "force=true" in refused["msg"]
    assert build(**params)["failed"]
    assert image.read_text() == "previous"
    assert not list(work.glob("out.*"))

    assert build(**params, on_error="abort")["failed"]
    assert image.read_text() == "previous"
    assert [path.name for path in work.glob("out.*")] == ["out.failed"]
    assert (work / "out.failed/t.qcow2").read_bytes()[:4] == b"QFI\xfb"

    assert build(**params, replace="in_place")["failed"]
    assert not image.exists()

    (work / "out").mkdir()
    image.write_text("previous")
    made = build(template=str(qemu_template), force=True)
    assert made["changed"], made
    assert image.read_bytes()[:4] == b"QFI\xfb"
    assert [path.name for path in work.glob("out.*")] == ["out.failed"]


# Prints its text on the first serial port, then hangs.
PANIC = bytes.fromhex("fc31c08ed8be167cbaf803ac84c07403eeebf8f4ebfd") + b"login:\r\nKernel panic\r\n\0"


@needs_qemu
def test_failure_tells_phase_reason_and_the_end_of_the_console(build: Build, qemu_template: Path) -> None:
    boot_disk(qemu_template.parent / "hang.raw", PANIC)
    ssh = 'communicator = "ssh"\n  ssh_username = "u"\n  ssh_password = "p"\n  ssh_timeout = "4s"'
    qemu_template.write_text(QEMU_TEMPLATE.replace('communicator     = "none"', ssh))
    result = build(template=str(qemu_template), variables={"disk": "hang.raw"}, console_log="console.log")
    assert result["failed"]
    assert result["phase"] == "boot"
    assert result["msg"] == "packer build failed in phase boot: qemu.t: Timeout waiting for SSH."
    assert result["console"] == ["login:", "Kernel panic"]
    assert "qemu-system" in result["qemu_command"][0]
    documented.check_returned("packer_build", result)
