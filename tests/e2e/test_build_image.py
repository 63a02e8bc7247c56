# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main promise: one command builds, boots and proves the default image, and does nothing the second time."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
OUTPUT = CHECKOUT / "output" / "cloud_base"
IMAGE = OUTPUT / "cloud_base.qcow2"


@pytest.fixture(scope="session")
def manifest(built: str) -> dict[str, Any]:
    return json.loads((OUTPUT / "manifest.json").read_text())


def test_the_output_ends_with_a_summary_or_says_why_nothing_was_done(built: str):
    tail = built[built.index("PLAY RECAP") :]
    if "nothing has changed since the last build" in built:
        assert "changed=0" in tail
        return
    for fact in ("image", "size", "checks", "content", "phases", "boot it"):
        assert re.search(rf"^{fact}  +\S", tail, re.MULTILINE), tail
    assert str(IMAGE) in tail


def test_all_evidence_is_there_and_its_digests_are_right(built: str):
    sums = dict(reversed(line.split("  ")) for line in (OUTPUT / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {"cloud_base.qcow2", "manifest.json", "junit.xml", "build.log", "console.log"}
    for name, digest in sums.items():
        with (OUTPUT / name).open("rb") as handle:
            assert hashlib.file_digest(handle, "sha256").hexdigest() == digest, name


def test_the_image_is_a_small_compressed_qcow2(built: str):
    info = json.loads(subprocess.run(
        ["qemu-img", "info", "--output=json", str(IMAGE)], check=True, capture_output=True, text=True
    ).stdout)  # fmt: skip
    assert info["format"] == "qcow2"
    assert info["format-specific"]["data"]["compression-type"] == "zstd"
    assert "backing-filename" not in info
    assert info["virtual-size"] == 10 * 1024**3
    assert IMAGE.stat().st_size <= 500_000_000
    subprocess.run(["qemu-img", "check", "-q", str(IMAGE)], check=True)


def test_the_manifest_tells_how_it_was_made(manifest: dict[str, Any]):
    assert manifest["name"] == "cloud_base"
    assert manifest["plan"]["accelerator"]["name"] in ("kvm", "tcg")
    assert manifest["plan"]["kubernetes"]["source"] in ("upstream", "distribution")
    assert {"packer", "qemu", "ansible"} <= set(manifest["versions"])
    packages = {package["name"]: package["version"] for package in manifest["packages"]}
    assert {"containerd", "openssh-server", "linux-image-cloud-amd64", "prometheus-node-exporter"} <= set(packages)
    assert all(packages.values())
    assert {"role hardening", "role cleanup", "accelerator"} <= set(manifest["inputs"])
    names = [phase["name"] for phase in manifest["phases"]]
    assert len(names) >= 5
    assert all(phase["seconds"] >= 0 for phase in manifest["phases"])
    assert manifest["verification"]["passed"] is True


def test_every_check_passed_and_each_subject_was_checked(manifest: dict[str, Any]):
    suites = list(ET.parse(OUTPUT / "junit.xml").getroot().iter("testsuite"))
    cases = [case for suite in suites for case in suite.iter("testcase")]
    assert len(cases) == manifest["verification"]["tests"] > 50
    assert not [
        case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    subjects = {case.get("classname", "").rpartition("test_")[2].partition(".")[0] for case in cases}
    assert set(manifest["definition"]["checks"]) <= subjects


def test_the_logs_speak_of_the_build_and_of_the_test_boots(built: str):
    console = (OUTPUT / "console.log").read_text(errors="replace")
    assert console.count("Linux version 6.") >= 3  # the build, two test machines, and one of them again
    assert "PLAY RECAP" in (OUTPUT / "build.log").read_text(errors="replace")


def test_nothing_is_left_behind(built: str, processes_with):
    # The place of this image in this output folder; a build elsewhere that was killed may have left its own.
    place = f"cloud_base-{hashlib.sha256(str(OUTPUT).encode()).hexdigest()[:8]}"
    work = Path("~/.cache/goldsmith-images/work").expanduser()
    assert not (work / place).exists()
    assert (work.parent / "locks" / f"{place}.lock").exists(), "that was never the place of this image"
    assert not processes_with(str(work / place))


def test_no_private_key_is_in_what_a_user_gets(built: str):
    for path in OUTPUT.iterdir():
        if path.suffix != ".qcow2":
            assert "PRIVATE KEY" not in path.read_text(errors="replace"), path


def test_the_second_run_does_nothing_and_says_why(manifest: dict[str, Any], play):
    before = {path.name: path.stat().st_mtime_ns for path in OUTPUT.iterdir()}
    second = play("playbooks/build-image.yml", "-e", "image=cloud_base")
    assert second.wait(300) == 0, second.output
    assert re.search(r"changed=0 +unreachable=0 +failed=0", second.output)
    assert not re.search(r"changed=[1-9]", second.output)
    assert "nothing has changed since the last build" in " ".join(second.output.split())
    assert {path.name: path.stat().st_mtime_ns for path in OUTPUT.iterdir()} == before
