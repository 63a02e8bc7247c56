# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""scripts/setup, as far as it can be tried on a machine that is set up: it must not change anything then."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PINNED = re.compile(r"[\w.-]+(\[\w+\])?==[\w.]+(; python_version (<|>=) \"3\.\d+\")?")
SETUP = CHECKOUT / "scripts" / "setup"


def setup(*arguments: str, script: Path = SETUP, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def small_checkout(folder: Path) -> Path:
    """Its requirements are empty, so that nothing is downloaded."""
    (folder / "scripts").mkdir()
    shutil.copy(SETUP, folder / "scripts" / "setup")
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        (folder / name).touch()
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return small_checkout(tmp_path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with its environment; making one takes seconds."""
    checkout = small_checkout(tmp_path_factory.mktemp("ready"))
    first = in_checkout(checkout, "runtime")
    assert first.returncode == 0, first.stderr
    return checkout


def in_checkout(checkout: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return setup(*arguments, script=checkout / "scripts" / "setup", **{"SETUP_PACKAGES": "skip", **env})


def test_an_unknown_level_is_named() -> None:
    done = setup("everything")
    assert done.returncode == 1
    assert "everything" in done.stderr and "runtime|tests" in done.stderr


def test_the_environment_is_made_once(ready: Path) -> None:
    link = ready / ".venv" / "collections" / "ansible_collections" / "goldsmith" / "images"
    assert link.resolve() == ready
    made = (ready / ".venv" / "pyvenv.cfg").stat().st_mtime_ns

    second = in_checkout(ready, "runtime")
    assert (second.returncode, second.stdout) == (0, "")
    assert (ready / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == made


@pytest.mark.parametrize("damage", ["interrupted", "python_gone", "moved"])
def test_a_damaged_environment_is_built_anew(ready: Path, damage: str) -> None:
    if damage == "interrupted":
        (ready / ".venv" / ".setup-made-at").unlink()
    elif damage == "python_gone":
        (ready / ".venv" / "bin" / "python").unlink()
        (ready / ".venv" / "bin" / "python").symlink_to("/nonexistent/python3.11")
    else:
        (ready / ".venv" / ".setup-made-at").write_text("/somewhere/else/.venv", encoding="utf-8")

    again = in_checkout(ready, "runtime")

    assert again.returncode == 0, again.stderr
    assert "building it anew" in again.stdout
    assert subprocess.run([ready / ".venv" / "bin" / "python", "-c", "import pip"], check=False).returncode == 0


def test_a_failed_installation_shows_why_and_is_taken_up_again(checkout: Path) -> None:
    wrong = checkout / "requirements.txt"
    wrong.write_text("/nonexistent/package.whl\n", encoding="utf-8")
    failed = in_checkout(checkout, "runtime")
    assert failed.returncode == 1
    assert "/nonexistent/package.whl" in failed.stderr
    assert str(checkout / ".cache" / "setup.log") in failed.stderr

    wrong.write_text("", encoding="utf-8")
    assert in_checkout(checkout, "runtime").returncode == 0


def test_a_python_that_does_not_run_is_passed_over(checkout: Path, tmp_path: Path) -> None:
    shims = tmp_path / "shims"
    shims.mkdir()
    for version in ("3.13", "3.12", "3.11"):
        (shims / f"python{version}").write_text("#!/bin/sh\necho 'no such version' >&2\nexit 127\n", encoding="utf-8")
        (shims / f"python{version}").chmod(0o755)
    # A real one stands behind the shims, under the name of the version that it is.
    real = tmp_path / "real"
    real.mkdir()
    name = "python{}.{}".format(*sys.version_info[:2])
    (real / name).symlink_to(Path(getattr(sys, "_base_executable", sys.executable)).resolve())

    done = in_checkout(checkout, "runtime", PATH=f"{shims}:{real}:/usr/bin:/bin")

    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv" / "bin" / "python").exists()


def without_apt(tmp_path: Path, **programs: str) -> dict[str, str]:
    """An environment with stand-ins in front of the system's programs."""
    for name, script in programs.items():
        (tmp_path / name.replace("_", "-")).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / name.replace("_", "-")).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SETUP_PACKAGES": ""}


def test_without_root_the_command_to_type_is_shown(checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    env = without_apt(folder, dpkg_query="exit 1", id="echo 1000", sudo="exit 1")

    done = in_checkout(checkout, "runtime", **env)

    assert done.returncode == 1
    assert "sudo" in done.stderr
    assert re.search(r"apt-get install --no-install-recommends .*mmdebstrap", done.stderr)


def requirements() -> list[str]:
    lines: list[str] = []
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines += (CHECKOUT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def packages() -> list[str]:
    arrays = re.findall(r"^(?:runtime|test)_packages=\((.*?)\)", SETUP.read_text(encoding="utf-8"), re.M | re.S)
    assert len(arrays) == 2
    return " ".join(arrays).split()


def test_requirements_are_pinned() -> None:
    for requirement in requirements():
        assert PINNED.fullmatch(requirement), f"{requirement} is not an exact version"


def test_what_is_installed_is_explained() -> None:
    """CONTRIBUTING.md says for each package what it is for, so that none stays when its reason has gone."""
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = [requirement.split("=")[0].split("[")[0] for requirement in requirements()] + packages()
    assert not [name for name in names if f"`{name}`" not in text]
