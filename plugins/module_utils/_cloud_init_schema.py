# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""cloud-init's own schema, through the program `cloud-init schema`, and what its answer really says."""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils import _cloud_init_yaml as yaml
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import Finding, finding

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_parts import Part
    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_shell import Tools

_VERSION = re.compile(r"(\d+)\.(\d+)")
_ERRORS = re.compile(r"Cloud config schema errors: (.*?)(?=\n\s*\n|\nCloud config schema|\nError|\Z)", re.DOTALL)
_DEPRECATIONS = re.compile(r"Cloud config schema deprecations: (.*)")
_NEXT = re.compile(r", (?=[\w./-]*: )")
_UNEXPECTED = re.compile(r"\(?'([^']+)'(?:, '[^']+')* (?:was|were) unexpected")
#: Exit 0, and nothing was looked at. Older releases (22.4 is one) do not even say so when python3-jsonschema is missing.
_SAYS_WHAT_IT_SKIPS = (25, 1)
_INVALID = "#cloud-config\nruncmd: 1\n"
_SKIPPED = re.compile(r".*(?:Skipping|not currently evaluated|dependency missing).*")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the schema says of one part."""

    evaluated: bool
    reason: str = ""
    rc: int | None = None
    stdout: str = ""
    findings: list[Finding] = dataclasses.field(default_factory=list)
    deprecations: list[str] = dataclasses.field(default_factory=list)


def version(tools: Tools) -> tuple[int, int] | None:
    """The version of cloud-init, None if there is none."""
    program = tools.find("cloud-init")
    if program is None:
        return None
    done = tools.run([program, "--version"])
    match = _VERSION.search(done.stdout + done.stderr)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check(
    part: Part, root: t.Any, installed: tuple[int, int] | None, folder: str, instance_data: str | None, tools: Tools
) -> Verdict:
    """Ask the schema about a cloud-config or network-config; `root` is the same text's root node."""
    if installed is None:
        return Verdict(False, "cloud-init is not installed")
    argv = [tools.find("cloud-init") or "cloud-init", "schema"]
    if part.kind == "network-config":
        if installed < (23, 4):
            return Verdict(False, f"cloud-init {_dotted(installed)} has no schema of network-config (23.4 has)")
        argv += ["--schema-type", "network-config"]
    if part.template is not None:
        if installed < (23, 2):
            return Verdict(False, f"cloud-init {_dotted(installed)} checks no templates (23.2 does)")
        if instance_data is None:
            return Verdict(False, "templates are checked with instance_data only")
        argv += ["--instance-data", instance_data]
    path = os.path.join(folder, "schema.yml")
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write((part.template or part.text).value)
    done = tools.run([*argv, "--config-file", path])
    said = f"{done.stdout}\n{done.stderr}".replace(path, part.text.source.file).strip()
    skipped = _SKIPPED.search(said)
    if done.returncode == 0 and skipped:
        return Verdict(False, skipped[0].strip(), done.returncode, said)
    if done.returncode == 0 and installed < _SAYS_WHAT_IT_SKIPS and not _rejects(_INVALID, folder, tools):
        return Verdict(False, f"cloud-init {_dotted(installed)} accepts anything: is python3-jsonschema there?", 0, said)
    if done.returncode == 2 and "unrecognized arguments" in said:
        return Verdict(False, f"cloud-init {_dotted(installed)} does not know {' '.join(argv[2:])}", 2, said)
    problems = list(_problems(part, root, said))
    if done.returncode != 0 and not problems:
        problems = [_finding(part, None, "schema", said.splitlines()[-1] if said else f"exit {done.returncode}")]
    return Verdict(
        True,
        rc=done.returncode,
        stdout=said,
        findings=problems,
        deprecations=[
            " ".join(text.split()) for match in _DEPRECATIONS.finditer(said) for text in _NEXT.split(match[1])
        ],
    )


def _rejects(text: str, folder: str, tools: Tools) -> bool:
    path = os.path.join(folder, "invalid.yml")
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)
    return tools.run([tools.find("cloud-init") or "cloud-init", "schema", "--config-file", path]).returncode != 0


def _problems(part: Part, root: t.Any, said: str) -> Iterator[Finding]:
    match = _ERRORS.search(said)
    if not match:
        return
    by_path: dict[str, list[str]] = {}
    for problem in _NEXT.split(match[1]):
        path, _unused, message = problem.partition(": ")
        by_path.setdefault(path, []).append(" ".join(message.split()))
    for path, messages in by_path.items():
        yield _finding(part, _node(root, path, messages[0]), path, "; ".join(messages))


def _node(root: t.Any, path: str, message: str) -> t.Any:
    node = yaml.find(root, path) if root is not None else None
    unexpected = _UNEXPECTED.search(message)
    if unexpected and yaml.is_mapping(node):
        return next((key for name, key, _unused in yaml.items(node) if name == unexpected[1]), node)
    return node


def _finding(part: Part, node: t.Any, path: str, message: str) -> Finding:
    place = yaml.position(part.text, node) if node is not None else None
    return finding(
        part.text, part.origin, place, "error", "schema", "schema", f"{path}: {message}" if path else message
    )


def _dotted(number: tuple[int, int]) -> str:
    return f"{number[0]}.{number[1]}"
