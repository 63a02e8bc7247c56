# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The EXAMPLES of the modules are run, on this Python and on the oldest that a target may have.

One play has them all, in files of its own; what would change this machine runs in check mode.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _tree_layers
from ansible_collections.goldsmith.images.tests.support import documented, oldest_python

CHECKOUT = Path(__file__).resolve().parents[2]
PREFIX = "goldsmith.images."
NAMES = sorted(path.stem for path in documented.MODULES.glob("*.py"))
BOOTED = Path("/run/systemd/system").is_dir()

Task = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """How the examples of a module are run."""

    check: bool = False
    count: int | None = None
    """Only so many: the others need the network, or a machine that is booted."""
    replace: dict[str, str] = field(default_factory=dict)
    """Texts in the examples that are replaced; {here} is a folder of the test."""


CASES = {
    "base_disk": Case(check=True, count=1),
    "cml_gui_check": Case(
        replace={
            "cml.example.com": "127.0.0.1:9",
            '"wait": 1200': '"wait": 0',
            '"fail": true': '"fail": false',
            "{{{{ cml_password }}}}": "x",
        }
    ),
    "config_files": Case(replace={"/etc/": "{here}/etc/", "/opt/": "{here}/opt/", "visudo -cf": "test -s"}),
    "image_cache": Case(),
    "image_cleanup": Case(replace={"/var/lib": "{here}/lib", "/etc/": "{here}/etc/"}),
    "image_definition": Case(),
    "image_lock": Case(replace={"/var/lib/images": "{here}"}),
    "image_plan": Case(
        replace={
            "/usr/share/ansible/collections/ansible_collections/goldsmith/images": str(CHECKOUT),
            "/var/cache": "{here}",
            "/srv/images": "{here}",
        }
    ),
    "image_release": Case(replace={"/var/cache/goldsmith-images/work": "{here}", "output/": "{here}/output/"}),
    "kernel_settings": Case(check=True),
    "kubernetes_preflight": Case(count=1),
    "kvm_check": Case(count=1),
    "play_tempdir": Case(),
    "root_tree_layer": Case(replace={"/var/tmp": "{here}", "/var/cache": "{here}"}),
    "swap_off": Case(check=True),
    "systemd_units": Case(
        check=True,
        count=None if BOOTED else 1,
        replace={} if BOOTED else {"{{{{ ansible_facts['is_chroot'] }}}}": "true"},
    ),
}


def run_elsewhere(name: str) -> bool:
    """Whether a test file of the module's own runs its examples."""
    call = f'section("{name}", "EXAMPLES")'
    return any(call in path.read_text(encoding="utf-8") for path in CHECKOUT.glob("tests/**/test_*.py"))


def test_no_module_is_forgotten() -> None:
    forgotten = [name for name in NAMES if name not in CASES and not run_elsewhere(name)]
    assert not forgotten, "a case is missing, or a test of their own that runs their examples"


def tasks_of(name: str, here: Path) -> list[Task]:
    """The module's own tasks of its examples, fitted to this place."""
    case = CASES[name]
    text = json.dumps(documented.section(name, "EXAMPLES"))
    for old, new in case.replace.items():
        text = text.replace(old.format(), new.format(here=here))
    tasks = [task for task in json.loads(text) if PREFIX + name in task]
    return [{**task, "ignore_errors": True, "check_mode": case.check} for task in tasks[: case.count]]


def prepare(here: Path) -> dict[str, Any]:
    """What the examples take for granted: files, and the variables that are returned."""
    for folder in ("etc", "lib/apt/lists", "opt", "output", "build/tree", "cloud_base/disk"):
        (here / folder).mkdir(parents=True)
    (here / "sudoers.j2").write_text("operator ALL=(ALL) ALL\n")
    (here / "etc/machine-id").write_text("0" * 32 + "\n")
    (here / "lib/apt/lists/Packages").write_text("")
    (here / "build/state.json").write_text(json.dumps(_tree_layers.snapshot(here / "build/tree")))
    (here / "build/tree/file").write_text("new")
    image = here / "cloud_base/disk/cloud_base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1G"], check=True)
    (here / "junit.xml").write_text("<testsuites/>")
    verified = {"sha256": hashlib.sha256(image.read_bytes()).hexdigest(), "junit": str(here / "junit.xml")}
    manifest = {
        "verification": {"passed": True, "tests": 3, "skipped": 0},
        "plan": {"kubernetes": {}},
        "phases": [{"name": "build", "seconds": 1}],
        "packages": [],
    }
    definition = "{{ cloud_base.definition | combine({'roles': ['base_packages'], 'vars': {}}) }}"
    return {"verify_image_result": verified, "manifest": manifest, "definition": definition}


@pytest.fixture(scope="module", params=["this", "oldest"])
def results(
    request: pytest.FixtureRequest, ansible_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """What the examples of each module returned, in their order."""
    python = sys.executable if request.param == "this" else oldest_python.required()
    here = tmp_path_factory.mktemp("examples")
    # Those that others need come first.
    names = sorted(CASES, key=lambda name: (name not in ("kvm_check", "image_definition"), name))
    facts = {"ansible.builtin.setup": {"gather_subset": ["!all", "!min", "chroot"]}, "name": "Facts"}
    examples = [(name, task) for name in names for task in tasks_of(name, here)]
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": prepare(here),
        "tasks": [facts, *(x[1] for x in examples)],
    }
    (here / "play.yml").write_text(json.dumps([play]))
    command = [str(shutil.which("ansible-playbook", path=ansible_env["PATH"])), "-i", "localhost,", "-c", "local"]
    command += ["-e", f"ansible_python_interpreter={python}", str(here / "play.yml")]
    env = {**ansible_env, "XDG_CACHE_HOME": str(here / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    try:
        [report] = json.loads(done.stdout[done.stdout.index("{") :])["plays"]
        found = [task["hosts"]["localhost"] for task in report["tasks"]]
        assert len(found) == len(examples) + 1
    except (ValueError, LookupError, AssertionError):
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    by_name: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for (name, _task), result in zip(examples, found[1:]):
        by_name[name].append(result)
    yield by_name
    for result in by_name["play_tempdir"]:
        with contextlib.suppress(KeyError):
            assert not os.path.exists(result["path"])


@pytest.mark.parametrize("name", sorted(CASES))
def test_examples_run_and_return_what_is_documented(results: dict[str, list[dict[str, Any]]], name: str) -> None:
    assert results[name]
    for result in results[name]:
        assert not result.get("failed"), result.get("msg", "") + result.get("exception", "")
        if not result.get("skipped"):
            documented.check_returned(name, result)
