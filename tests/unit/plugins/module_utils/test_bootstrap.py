# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree: whose mirrors, which packages, what an error says."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _bootstrap
from ansible_collections.goldsmith.images.plugins.module_utils._bootstrap import BootstrapError, Mirrors, make_recipe
from ansible_collections.goldsmith.images.plugins.module_utils._command import CommandError, Runner, private_namespaces

MIRRORS = Mirrors("http://mirror.example.com/debian", "http://mirror.example.com/debian-security")

# apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(ORIGIN)' on a Debian 12 with backports and two other archives
AFTER_UPDATE = """\
http://mirror.example.com/debian-security/|bookworm-security|Debian
http://mirror.example.com/debian/|bookworm-backports|Debian Backports
http://mirror.example.com/debian/|bookworm-updates|Debian
http://mirror.example.com/debian/|bookworm|Debian
https://packages.example.org/apt|cloud-bookworm|Example
https://node.example.org/node_20.x|nodistro|. nodistro
"""
BEFORE_UPDATE = """\
https://packages.example.org/apt|stable|
http://mirror.example.com/debian/|bookworm|
http://mirror.example.com/debian/|bookworm-updates|
http://mirror.example.com/debian-security/|bookworm-security|
"""
UBUNTU = """\
http://archive.example.com/ubuntu/|noble|Ubuntu
http://archive.example.com/ubuntu/|noble-security|Ubuntu
"""


@pytest.mark.parametrize("text", [AFTER_UPDATE, BEFORE_UPDATE])
def test_mirrors_of_a_debian_host(text: str) -> None:
    assert _bootstrap.parse_index_targets(text) == MIRRORS


@pytest.mark.parametrize("text", [UBUNTU, "", "nonsense\n", "cdrom://disc/|bookworm|Debian\n"])
def test_host_without_a_usable_debian_mirror(text: str) -> None:
    assert _bootstrap.parse_index_targets(text) == Mirrors()


def test_given_mirror_brings_its_security_archive() -> None:
    assert _bootstrap.choose_mirrors("http://mirror.example.com/debian/", None) == MIRRORS
    chosen = _bootstrap.choose_mirrors("http://a.example.com/debian", "http://b.example.com/security")
    assert chosen.security == "http://b.example.com/security"


def test_sources_have_updates_and_security() -> None:
    recipe = make_recipe("debian", "trixie", [], ["main", "contrib"], MIRRORS)
    assert recipe.sources() == [
        "deb http://mirror.example.com/debian trixie main contrib",
        "deb http://mirror.example.com/debian trixie-updates main contrib",
        "deb http://mirror.example.com/debian-security trixie-security main contrib",
    ]
    assert recipe.release_files()[2] == "http://mirror.example.com/debian-security/dists/trixie-security/InRelease"


def test_rolling_release_has_one_suite() -> None:
    assert len(make_recipe("debian", "sid", [], ["main"], MIRRORS).sources()) == 1


def test_version_of_a_minimal_package_can_be_given() -> None:
    recipe = make_recipe("debian", "trixie", ["cloud-init=25.1.4-1", "vim"], ["main"], MIRRORS)
    assert "cloud-init=25.1.4-1" in recipe.packages
    assert "cloud-init" not in recipe.packages
    assert "vim" in recipe.packages
    assert "linux-image-cloud-amd64" in recipe.packages


@pytest.mark.parametrize(
    ("distribution", "release", "packages", "message"),
    [
        ("ubuntu", "noble", [], "method 'download'"),
        ("debian", "Trixie; rm", [], "not the name of a release"),
        ("debian", "../trixie", [], "not the name of a release"),
        ("debian", "trixie", ["vim,htop"], "not the name of a package"),
        ("debian", "trixie", ["--help"], "not the name of a package"),
    ],
)
def test_bad_wishes(distribution: str, release: str, packages: list[str], message: str) -> None:
    with pytest.raises(BootstrapError, match=message):
        make_recipe(distribution, release, packages, ["main"], MIRRORS)


def test_inputs_follow_what_decides_about_the_tree() -> None:
    def inputs(**changes: object) -> dict[str, object]:
        values = {"release": "trixie", "packages": ["vim"], "components": ["main"], "mirrors": MIRRORS, **changes}
        return make_recipe("debian", **values).inputs()  # type: ignore[arg-type]

    assert inputs() == inputs(packages=["vim", "vim"])
    for change in (
        {"release": "bookworm"},
        {"packages": ["vim", "htop"]},
        {"components": ["main", "contrib"]},
        {"mirrors": Mirrors()},
        {"path_excludes": False},
    ):
        assert inputs(**change) != inputs(), change


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bootstrap, "find_program", lambda name, package: f"/usr/bin/{name}")
    recipe = make_recipe("debian", "trixie", ["vim"], ["main"], MIRRORS)
    hooks = {"customize": tmp_path / "finish.sh"}
    command = _bootstrap.mmdebstrap_command(recipe, tmp_path / "root.tar", hooks, rootless=True)
    assert "--mode=unshare" in command
    target = command.index(str(tmp_path / "root.tar"))
    assert command[target - 1] == "trixie"
    assert command[target + 1 :] == recipe.sources()
    assert f"--customize-hook={tmp_path}/finish.sh" in command


REFUSED = """\
E: Failed to fetch http://mirror.example.com/debian/dists/trixie/InRelease  Could not connect to mirror.example.com:80
E: Download Failed
"""
NOT_FOUND = """\
E: Failed to fetch http://mirror.example.com/debian/dists/nope/InRelease  404  Not Found [IP: 203.0.113.80 80]
E: Download Failed
"""


def test_messages_name_the_address_and_what_to_do() -> None:
    recipe = make_recipe("debian", "nope", [], ["main"], MIRRORS)
    url = recipe.release_files()[0]
    refused = _bootstrap._mirror_message(recipe, url, REFUSED)
    assert "does not answer" in refused
    assert "mirror.example.com" in refused
    assert "another mirror" in refused
    assert "no release 'nope'" in _bootstrap._mirror_message(recipe, url, NOT_FOUND)


@pytest.mark.parametrize(("megabytes", "runs"), [(1, 1), (9, 2)])
def test_scratch_in_memory_and_on_the_disk_when_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int, runs: int
) -> None:
    monkeypatch.setattr(_bootstrap._host_memory, "spare", lambda: 4 * 2**20)
    runner = Runner(tmp_path / "log")
    runner.log.touch()
    script = f"echo on $(df --output=fstype $TMPDIR | tail -1); head -c {megabytes}M /dev/zero > $TMPDIR/file"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    _bootstrap._run_in_memory(runner, private_namespaces(), ["sh", "-c", script], {"TMPDIR": str(scratch)}, scratch)
    places = [line for line in runner.log.read_text().splitlines() if line.startswith("on ")]
    assert len(places) == runs, runner.log.read_text()
    assert places[0] == "on tmpfs"
    assert [path.name for path in scratch.iterdir()] == (["file"] if runs == 2 else [])


def test_failure_for_another_reason_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bootstrap._host_memory, "spare", lambda: 4 * 2**20)
    runner = Runner(tmp_path / "log")
    runner.log.touch()
    with pytest.raises(CommandError, match="^sh failed with exit status 3"):
        _bootstrap._run_in_memory(runner, private_namespaces(), ["sh", "-c", "echo once; exit 3"], {}, tmp_path)
    assert runner.log.read_text().splitlines().count("once") == 1
