# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The linters, each with the settings that stand at the root of the checkout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).resolve().parents[2]


def test_ruff_check(run: Callable[..., str]) -> None:
    run("ruff", "check", "--no-cache", ".")


def test_ruff_format(run: Callable[..., str]) -> None:
    run("ruff", "format", "--no-cache", "--check", ".")


def test_yamllint(run: Callable[..., str], source_copy: Path) -> None:
    run("yamllint", "--strict", ".", cwd=source_copy)


def test_ansible_lint(run: Callable[..., str], source_copy: Path) -> None:
    run(
        "ansible-lint",
        "--strict",
        "--offline",
        "-q",
        cwd=source_copy,
        ANSIBLE_COLLECTIONS_PATH=str(source_copy.parents[2]),
    )


def test_shellcheck(run: Callable[..., str], files: list[Path]) -> None:
    scripts = [path for path in files if is_shell(path)]
    assert Path("scripts/setup") in scripts
    run("shellcheck", *scripts)


def is_shell(path: Path) -> bool:
    if path.suffix in {".j2", ".md"}:
        return False
    with (CHECKOUT / path).open("rb") as stream:
        return path.suffix == ".sh" or re.match(rb"#! ?/\S*(/env )?(ba|da)?sh\b", stream.readline()) is not None


def test_packer_fmt(run: Callable[..., str], files: list[Path]) -> None:
    templates = [path for path in files if path.name.endswith((".pkr.hcl", ".pkrvars.hcl"))]
    assert templates
    # One folder at a time: 1.6.6 knows no -recursive.
    for folder in sorted({path.parent for path in templates}):
        run("packer", "fmt", "-check", "-diff", folder, CHECKPOINT_DISABLE="1")
