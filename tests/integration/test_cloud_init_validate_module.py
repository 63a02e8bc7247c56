# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cloud_init_validate as a module: what it returns, bad input, and the schema of the cloud-init of Debian 12 and 13."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support import documented, root_tree

BROKEN = "#cloud-config\nruncmd:\n  - set -e\n  - exec > >(tee log) 2>&1\n"
GOOD = "#cloud-config\nruncmd:\n  - [touch, /run/ready]\n"
PACKAGES = (*root_tree.PACKAGES, "cloud-init")
in_a_tree = pytest.mark.skipif(bool(root_tree.missing()), reason=root_tree.missing())


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("content", [BROKEN, GOOD])
def test_the_same_keys_in_check_mode(run_module, content: str, check: bool) -> None:
    result = run_module("cloud_init_validate", content=content, _check=check)
    documented.check_returned("cloud_init_validate", result)
    assert (result["failed"], result["changed"]) == (False, False)
    assert [text.split(": ")[0] for text in result["problems"]] == (["content:4:10"] if content == BROKEN else [])
    assert result["evaluated"] is (not result["tools_missing"])
    assert result["valid"] is (result["evaluated"] and content == GOOD)


@pytest.mark.parametrize("check", [False, True])
def test_failing_names_place_cause_and_correction(run_module, check: bool) -> None:
    result = run_module("cloud_init_validate", content=BROKEN, fail=True, _check=check)
    documented.check_returned("cloud_init_validate", result)
    assert result["failed"]
    for word in ("content:4:10", "redirection unexpected", "cmd >file 2>&1"):
        assert word in result["msg"]


def test_require_evaluated(run_module, tmp_path: Path) -> None:
    for program in Path("/usr/bin").iterdir():
        if program.name not in ("dash", "shellcheck"):
            (tmp_path / program.name).symlink_to(program)
    params = {"content": GOOD, "checkers": ["syntax", "shellcheck"], "fail": True}
    environment = {"PATH": f"{Path(sys.executable).parent}:{tmp_path}"}
    assert not run_module("cloud_init_validate", **params, _env=environment)["failed"]
    result = run_module("cloud_init_validate", **params, require_evaluated=True, _env=environment)
    assert result["failed"]
    assert "not installed: dash" in result["msg"] and "not installed: shellcheck" in result["msg"]


def test_examples(run_module) -> None:
    tasks = documented.section("cloud_init_validate", "EXAMPLES")
    for block in documented.blocks("cloud_init_validate.md"):
        tasks += block if isinstance(block, list) else []
    ran = 0
    for task in tasks:
        params = task.get("goldsmith.images.cloud_init_validate")
        if not params or "src" in params or "system" in params:  # those are for a machine with cloud-init: below
            continue
        result = run_module("cloud_init_validate", **params)
        documented.check_returned("cloud_init_validate", result)
        assert not result["failed"], result["msg"]
        assert bool(result["problems"]) is ("fail" not in params)
        ran += 1
    assert ran == 2


def test_the_page_shows_what_is_said(run_module, tmp_path: Path) -> None:
    page = (documented.MODULES.parents[1] / "docs/cloud_init_validate.md").read_text(encoding="utf-8")
    [user_data] = [part.split("```")[0] for part in page.split("```yaml\n")[1:] if part.startswith("#cloud-config")]
    (tmp_path / "user-data").write_text(user_data)
    [example] = [block for block in documented.blocks("cloud_init_validate.md") if "user-data" in json.dumps(block)]
    params = {**example[0]["goldsmith.images.cloud_init_validate"], "src": [str(tmp_path / "user-data")]}
    result = run_module("cloud_init_validate", **params)
    said = page.split("```text\n")[1].split("```")[0]
    assert result["failed"]
    assert [" ".join(said.split())] == [text.replace(f"{tmp_path}/", "") for text in result["problems"]]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"src": ["/nowhere/user-data"]}, "cannot read /nowhere/user-data: No such file"),
        ({"src": ["/dev/zero"]}, "/dev/zero is neither a file nor a directory"),
        ({}, "say what to check: src, content or system"),
        ({"content": "", "timeout": 0}, "timeout must be greater than 0"),
        ({"content": "", "checkers": ["lint"]}, "lint"),
    ],
)
def test_bad_parameters(run_module, params: dict, words: str) -> None:
    result = run_module("cloud_init_validate", **params, _check=True)
    assert result["failed"] and words in result["msg"]


PROBE = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_report import Request
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import CloudInitError
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_validate import validate
try:
    said = validate(Request(src=sys.argv[2:], timeout=20.0, size_limit=0)).problems("error")
except CloudInitError as error:
    said = [str(error)]
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(json.dumps([said[:3], int(peak)]))
"""


def probe(path: Path) -> tuple[list[str], float]:
    """What is said of a file, and the memory that it took in MB."""
    command = [sys.executable, "-c", PROBE, json.dumps(sys.path), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    said, kib = json.loads(done.stdout)
    return said, kib * 1024 / 1e6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("huge", "has 200000000 bytes; more than 262144 are not checked"),
        ("bomb", "it unpacks to more than 262144 bytes"),
        ("binary", "is not UTF-8"),
        ("zeros", "binary data"),
        ("cut", "it begins like gzip and ends too early"),
        ("nested", "cannot be read as YAML: it is nested too deeply"),
        ("template", "cannot be read as YAML: it is nested too deeply"),
        ("aliases", "error: This cannot be read as YAML: it is too large with all its aliases. [yaml"),
        ("aliased content", "it is too large with all its aliases"),
        ("archives", "from here on it was not read"),
        ("config", ""),
        ("items", ""),
        ("script", ""),
    ],
)
def test_bad_input_takes_little_memory(tmp_path: Path, name: str, words: str) -> None:
    path = tmp_path / "user-data"
    if name == "huge":
        with path.open("wb") as stream:
            stream.write(b"#cloud-config\n")
            stream.truncate(200_000_000)
    elif name in ("bomb", "cut"):
        data = gzip.compress(b"#cloud-config\n" + b"#" * 50_000_000)
        path.write_bytes(data if name == "bomb" else gzip.compress(GOOD.encode())[:-9])
    else:
        size = 250_000
        content = {
            "binary": b"\x7fELF" + bytes(range(256)) * 100,
            "zeros": bytes(1000),
            "nested": b"#cloud-config\n" + b"[" * size,
            "template": b"## template: jinja\n#cloud-config\n" + b"{{" * (size // 2),
            "aliases": b"#cloud-config\nx: &a [" + b"word, " * 40 + b"]\nruncmd:\n" + b"- *a\n" * 40_000,
            "aliased content": b"#cloud-config\nx: &a '#!/bin/sh "
            + b"#" * 9000
            + b"'\nwrite_files:\n"
            + b"- {path: /a, content: *a}\n" * 8000,
            "archives": b"#cloud-config-archive\n- &a |\n  #cloud-config\n  x: &a [word, "
            + b"word, " * 200
            + b"]\n  runcmd:\n"
            + b"  - *a\n" * 60
            + b"- *a\n" * 100,
            "config": b"#cloud-config\nwrite_files:\n" + b"- {path: /a, content: abc}\n" * (size // 27),
            "items": b"#cloud-config\nruncmd:\n" + b"- echo $x\n" * (size // 10),
            "script": b"#!/bin/sh\n" + b"[[ $x ]] || true\n" * (size // 17),
        }[name]
        path.write_bytes(content)
    said, megabytes = probe(path)
    assert words in " ".join(said)
    assert megabytes < 100


def test_no_secret_in_a_schemas_message(run_module, tmp_path: Path) -> None:
    """Debian 12's schema quotes the user that it does not like, password and all."""
    program = tmp_path / "cloud-init"
    program.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'cloud-init 22.4.2'; exit; }\n"
        "echo \"Error:\nCloud config schema errors: users.0: {'passwd': 'opensesame'} is not valid\" >&2; exit 1\n"
    )
    program.chmod(0o755)
    result = run_module(
        "cloud_init_validate",
        content="#cloud-config\nusers:\n  - name: x\n    passwd: opensesame\n",
        checkers=["schema"],
        _env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert "users.0" in result["problems"][0]
    assert "opensesame" not in json.dumps(result)


def test_oldest_python_of_a_target(run_module, tmp_path: Path) -> None:
    """Python 3.9, as it comes without PyYAML: what is YAML is not evaluated, scripts are."""
    pythons = [shutil.which("python3.9"), *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9"))]
    working = [
        each
        for each in pythons
        if each and subprocess.run([each, "-V"], capture_output=True, check=False).returncode == 0
    ]
    if not working:
        pytest.skip("there is no Python 3.9 here")
    result = run_module("cloud_init_validate", content="#!/bin/sh\nset -e\ncat <<<x\n", _python=working[0])
    documented.check_returned("cloud_init_validate", result)
    assert result["problems"][0].startswith("content:3:5: error: Syntax error: redirection unexpected.")
    without_yaml = subprocess.run([working[0], "-c", "import yaml"], capture_output=True, check=False).returncode != 0
    result = run_module("cloud_init_validate", content=BROKEN, _python=working[0])
    assert bool(result["problems"]) is not without_yaml
    assert result["evaluated"] is False or not without_yaml


@in_a_tree
def test_provisioning_refuses_what_the_image_would_stumble_over(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, ansible_env: dict[str, str]
) -> None:
    tree = root_tree.pristine(tmp_path_factory).copy(tmp_path / "tree")
    [play] = yaml.safe_load((documented.MODULES.parents[1] / "playbooks/provision.yml").read_text())
    [task] = [task for task in play["tasks"] if "goldsmith.images.cloud_init_validate" in task]
    script = tree.path / "var/lib/cloud/scripts/per-boot/log"
    vendor = tree.path / "var/lib/cloud/instance/vendor-data.txt"
    for path, text in ((script, "#!/bin/sh\nset -e\nexec > >(tee f)\n"), (vendor, "#!/bin/sh\nset -e\ncat <<<x\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    script.chmod(0o755)
    (vendor.parent / "user-data.txt").write_text("")
    refused = tree.play([task], ansible_env)
    assert refused.code != 0
    assert "/var/lib/cloud/scripts/per-boot/log:3:6: error" in refused.output
    assert "/var/lib/cloud/instance/vendor-data.txt:3:5: error" in refused.output
    script.write_text("#!/bin/sh\nset -e\nexec >f\n")
    vendor.write_text("")
    accepted = tree.play([task], ansible_env)
    assert accepted.code == 0, accepted.output


CASES = {
    "story": "#cloud-config\nruncmd:\n  - set -e\n  - exec > >(tee f) 2>&1\n  - [[ -f x ]]\n",
    "valid": "#cloud-config\nruncmd:\n  - exec > >(tee f) 2>&1\n",
    "good": GOOD,
    "unknown": "#cloud-config\nhostname: x\nhostnmae: y\nruncmd: [[date]]\n",
    "type": "#cloud-config\nruncmd: [[date]]\npackages:\n  - jq\nmanage_etc_hosts: [1]\n",
    "deprecated": "#cloud-config\napt_update: true\n",
    "secret": "#cloud-config\nusers:\n  - {name: x, bar: y, passwd: opensesame, lock_passwd: 'no'}\n",
    "script": "#!/bin/sh\nset -e\ncat <<<x\n",
    "template": "## template: jinja\n#cloud-config\nhostname: {{ v1.local_hostname }}\nmanage_etc_hosts: [1]\n",
    "network": "version: 2\nethernets: {eth0: {dhcp4: true}}\n",
    "yaml": "#cloud-config\nruncmd: [\n",
}


@in_a_tree
@pytest.mark.slow_matrix  # a build of an image asks it too
@pytest.mark.parametrize(("suite", "version"), [("trixie", 25), ("bookworm", 22)])
def test_with_the_real_cloud_init(suite: str, version: int, ansible_env: dict[str, str], tmp_path: Path) -> None:
    tree = root_tree.bootstrap(tmp_path / "tree", suite, PACKAGES)
    # An expression stays an expression on its way through Ansible.
    (tree.path / "root/template").write_text(CASES["template"])
    (tree.path / "root/instance.json").write_text(json.dumps({"v1": {"local_hostname": "x"}}))
    boot = tree.path / "var/lib/cloud/scripts/per-boot"
    boot.mkdir(parents=True)
    (boot / "log").write_text("#!/bin/sh\nset -e\nexec > >(tee f)\n")
    (boot / "log").chmod(0o755)
    asked: dict[str, dict] = {name: {"content": content} for name, content in CASES.items()}
    asked["network"]["type"] = "network-config"
    asked["template"] = {"src": ["/root/template"]}
    asked["rendered"] = {"src": ["/root/template"], "instance_data": "/root/instance.json"}
    asked["system"] = {"system": True}
    asked["without"] = {"content": CASES["unknown"], "checkers": ["schema"]}
    module = "goldsmith.images.cloud_init_validate"
    tasks: list[dict] = [{module: params, "register": f"result_{name}"} for name, params in asked.items()]
    tasks.insert(-1, {"ansible.builtin.command": "mv /usr/lib/python3/dist-packages/jsonschema /root/"})
    values = ", ".join(f"'{name}': result_{name}" for name in asked)
    tasks += [{"ansible.builtin.copy": {"content": f"{{{{ {{{values}}} | to_json }}}}", "dest": "/root/results.json"}}]
    played = tree.play(tasks, ansible_env)
    assert played.code == 0, played.output
    found = json.loads((tree.path / "root/results.json").read_text())
    for result in found.values():
        documented.check_returned("cloud_init_validate", result)
        # The image has dash, and neither shellcheck nor checkbashisms.
        assert set(result["tools_missing"]) <= {"shellcheck", "checkbashisms"}

    def places(name: str, checker: str) -> list[tuple[int, int]]:
        return [(each["line"], each["column"]) for each in found[name]["findings"] if each["checker"] == checker]

    # What the schema calls valid, dash cannot read.
    assert found["valid"]["schema"][0]["rc"] == 0
    assert found["valid"]["schema"][0]["stdout"].startswith("Valid")
    assert places("valid", "dash") == [(3, 10)]
    assert places("story", "dash") == [(4, 10)]
    assert places("story", "yaml") == [(5, 5)]
    assert places("good", "schema") == []
    assert found["good"]["schema"][0]["evaluated"]
    assert places("type", "schema") == [(5, 19)]
    assert places("yaml", "schema") == []
    assert found["yaml"]["problems"]
    assert found["deprecated"]["problems"] == []
    assert "apt_update" in found["deprecated"]["deprecated_keys"][0]
    assert found["secret"]["problems"]
    assert "opensesame" not in json.dumps(found["secret"])
    assert (places("script", "dash"), found["script"]["schema"]) == ([(3, 5)], [])
    assert not found["template"]["evaluated"]
    assert found["rendered"]["schema"][0]["evaluated"] is (version >= 23)
    assert places("rendered", "schema") == ([(4, 19)] if version >= 23 else [])
    assert found["network"]["schema"][0]["evaluated"] is (version >= 23)
    assert places("unknown", "schema") == ([(3, 11)] if version >= 23 else []), found["unknown"]
    # Exit 0, and nothing was looked at.
    schema = found["without"]["schema"][0]
    assert (schema["rc"], schema["evaluated"], found["without"]["valid"]) == (0, False, False)
    # Debian's own configuration is in order.
    assert [text for text in found["system"]["problems"] if text.startswith("/etc/cloud/")] == []
    # The system: nothing has booted, and a script of every boot is wrong.
    system = found["system"]
    assert (system["status"]["state"], system["status"]["exit_code"]) == ("not_started", 0)
    assert [text for text in system["problems"] if text.startswith("/var/lib/cloud/scripts/per-boot/log:3:6: error")]
