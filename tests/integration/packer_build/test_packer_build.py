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
