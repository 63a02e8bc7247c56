# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Judge an image by the contract of the clean-up (roles/cleanup/files/contract.yml).

Shares nothing with the code that cleans up: a mistake made there is not made here again.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import glob
import posixpath
import re
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._image_tree import DiskTree, FolderTree, Tree, search

MAX_LINKS = 40
BUILD_USER = "{build_user}"
KEYS = {
    "id", "reason", "paths", "state", "content", "mode", "target", "pattern", "keep", "live_keep", "volatile", "final",
    "choice", "if_exists", "unless_contains",
}  # fmt: skip


class ImageHygieneError(Exception):
    """A contract that cannot be read as one."""


@dataclasses.dataclass(frozen=True)
class Violation:
    """A path that is not as a rule wants it."""

    rule: str
    path: str
    problem: str

    def as_dict(self) -> dict[str, str]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Terms:
    """How the image was made, as far as the contract leaves a choice."""

    choices: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep_paths: tuple[str, ...] = ()
    skip_rules: tuple[str, ...] = ()
    build_user: str = ""
    live: bool = False
    final: bool = True


Rule = t.Mapping[str, t.Any]


def check(tree: Tree, rules: t.Sequence[Rule], terms: Terms) -> tuple[list[str], list[Violation]]:
    """The ids of the rules that hold for this image, and all violations."""
    _check_contract(rules, terms)
    checked, found = [], []
    for rule in rules:
        if _holds(tree, rule, terms):
            checked.append(rule["id"])
            found += [
                Violation(rule["id"], path, problem) for path, problem in _JUDGES[rule["state"]](tree, rule, terms)
            ]
    return checked, found


def search_secrets(tree: Tree, secrets: t.Sequence[str]) -> list[Violation]:
    """Where the strings stand: anywhere on a disk, in use or not; in every file of a folder."""
    wanted = [secret.encode() for secret in secrets]
    found: list[Violation] = []
    if isinstance(tree, DiskTree):
        for number, offset in search(tree.stream, wanted):
            found.append(Violation("secrets", f"byte {offset} of the disk", f"secret {number + 1} stands there"))
    elif wanted:
        for path in _files(tree, "/", _Kept()):
            content = tree.read(path) if tree.kind(path) == "file" else b""
            for number, value in enumerate(wanted):
                if value in content:
                    found.append(Violation("secrets", path, f"secret {number + 1} stands in it"))
    return found


def _check_contract(rules: t.Sequence[Rule], terms: Terms) -> None:
    for rule in rules:
        name = rule.get("id", "?")
        missing = [key for key in ("id", "paths", "state") if not rule.get(key)]
        if missing or not isinstance(rule["paths"], (list, tuple)):
            raise ImageHygieneError(f"rule {name}: needs id, state and a list of paths")
        if rule["state"] not in _JUDGES:
            raise ImageHygieneError(f"rule {name}: state {rule['state']!r} is none of {', '.join(_JUDGES)}")
        if set(rule) - KEYS:
            raise ImageHygieneError(f"rule {name}: unknown keys: {', '.join(sorted(set(rule) - KEYS))}")
    ids = collections.Counter(rule["id"] for rule in rules)
    twice = sorted(name for name, count in ids.items() if count > 1)
    if twice:
        raise ImageHygieneError(f"rules with the same id: {', '.join(twice)}")
    unknown = sorted(set(terms.skip_rules) - set(ids))
    if unknown:
        raise ImageHygieneError(f"skip_rules: no such rule: {', '.join(unknown)}")


def _holds(tree: Tree, rule: Rule, terms: Terms) -> bool:
    if rule["id"] in terms.skip_rules or (rule.get("final") and not terms.final):
        return False
    if any(str(terms.choices.get(key)) != str(value) for key, value in (rule.get("choice") or {}).items()):
        return False
    if BUILD_USER in rule.get("pattern", "") and not terms.build_user:
        return False
    if rule.get("if_exists") and not _resolve(tree, rule["if_exists"]):
        return False
    unless = rule.get("unless_contains")
    if unless:
        path = _resolve(tree, unless["path"])
        return not (path and tree.kind(path) == "file" and unless["text"].encode() in tree.read(path))
    return True


# --- paths


def _resolve(tree: Tree, path: str) -> str:
    """The path without links on the way, as the running machine would take it; '' if it leads nowhere."""
    todo = [part for part in path.split("/") if part]
    place, links = "/", 0
    while todo:
        part = todo.pop(0)
        if part == "..":
            place = posixpath.dirname(place)
            continue
        step = posixpath.join(place, part)
        kind = tree.kind(step) if part != "." else "directory"
        if kind == "link":
            links += 1
            target = tree.target(step)
            place = "/" if target.startswith("/") else place
            todo = [part for part in target.split("/") if part] + todo
        elif part != ".":
            place = step
        if not kind or links > MAX_LINKS:
            return ""
    return place


def _expand(tree: Tree, pattern: str, terms: Terms) -> list[str]:
    """The paths that a glob stands for. The last part may be a link; links before it are followed, within the image."""
    if BUILD_USER in pattern:
        if not terms.build_user:
            return []
        pattern = pattern.replace(BUILD_USER, glob.escape(terms.build_user))
    *folders, last = [part for part in pattern.split("/") if part]
    places = ["/"]
    for part in folders:
        steps = [_resolve(tree, step) for place in places for step in _named(tree, place, part)]
        places = [step for step in dict.fromkeys(steps) if step and tree.kind(step) == "directory"]
    return list(dict.fromkeys(step for place in places for step in _named(tree, place, last)))


def _named(tree: Tree, place: str, part: str) -> list[str]:
    """What a part of a glob stands for in a directory: as in a shell, a star is no hidden file."""
    if not glob.has_magic(part):
        path = posixpath.join(place, part)
        return [path] if tree.kind(path) else []
    names = [name for name in tree.names(place) if fnmatch.fnmatchcase(name, part)]
    return [posixpath.join(place, name) for name in names if part.startswith(".") or not name.startswith(".")]


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Paths that may stay, with everything below them."""

    paths: frozenset[str] = frozenset()

    def __contains__(self, path: str) -> bool:
        while path not in self.paths and path != "/":
            path = posixpath.dirname(path)
        return path in self.paths

    def below(self, path: str) -> bool:
        return any(kept.startswith(path + "/") for kept in self.paths)


def _kept(tree: Tree, rule: Rule, terms: Terms) -> _Kept:
    patterns = [*(rule.get("keep") or ()), *terms.keep_paths, *((rule.get("live_keep") or ()) if terms.live else ())]
    return _Kept(frozenset(path for pattern in patterns for path in _expand(tree, pattern, terms)))


def _rest(tree: Tree, path: str, kept: _Kept) -> t.Iterator[str]:
    """What of a path may not stay: itself, or what is below it beside what may."""
    if path in kept or tree.is_foreign(path):
        return
    if tree.kind(path) == "directory" and kept.below(path):
        for name in tree.names(path):
            yield from _rest(tree, posixpath.join(path, name), kept)
    else:
        yield path


def _files(tree: Tree, folder: str, kept: _Kept) -> t.Iterator[str]:
    for name in tree.names(folder):
        path = posixpath.join(folder, name)
        if path in kept:
            continue
        if tree.kind(path) != "directory":
            yield path
        elif not tree.is_foreign(path):
            yield from _files(tree, path, kept)


# --- one function for each state: pairs of path and problem

Found = t.Iterator[tuple[str, str]]


def _matches(tree: Tree, rule: Rule, terms: Terms) -> list[str]:
    return [path for pattern in rule["paths"] for path in _expand(tree, pattern, terms)]


def _folders(tree: Tree, rule: Rule, terms: Terms) -> list[str]:
    return [path for path in _matches(tree, rule, terms) if tree.kind(path) == "directory"]


def _judge_absent(tree: Tree, rule: Rule, terms: Terms) -> Found:
    kept = _kept(tree, rule, terms)
    for path in _matches(tree, rule, terms):
        for rest in _rest(tree, path, kept):
            yield rest, "must not be there"


def _judge_empty_directory(tree: Tree, rule: Rule, terms: Terms) -> Found:
    kept = _kept(tree, rule, terms)
    for folder in _folders(tree, rule, terms):
        for name in tree.names(folder):
            for rest in _rest(tree, posixpath.join(folder, name), kept):
                yield rest, f"{folder} must be empty"


def _judge_no_files(tree: Tree, rule: Rule, terms: Terms) -> Found:
    kept = _kept(tree, rule, terms)
    for folder in _folders(tree, rule, terms):
        for path in _files(tree, folder, kept):
            yield path, f"there must be no files in {folder}"


def _wanted(tree: Tree, rule: Rule, terms: Terms) -> t.Iterator[str]:
    """The paths at which something must be: all whose directory could be there."""
    kept = _kept(tree, rule, terms)
    for path in rule["paths"]:
        folder = posixpath.dirname(path)
        if path not in kept and _resolve(tree, posixpath.dirname(folder)):
            yield posixpath.join(_resolve(tree, folder) or folder, posixpath.basename(path))


def _judge_content(tree: Tree, rule: Rule, terms: Terms) -> Found:
    mode = int(str(rule.get("mode", "0644")), 8)
    for path in _wanted(tree, rule, terms):
        kind = tree.kind(path)
        if kind != "file":
            yield path, f"must be a file, is {'a ' + kind if kind else 'missing'}"
        elif tree.read(path) != rule["content"].encode():
            yield path, f"must {'hold ' + repr(rule['content']) if rule['content'] else 'be empty'}"
        elif tree.mode(path) != mode:
            yield path, f"must have mode {mode:04o}, has {tree.mode(path):04o}"


def _judge_link(tree: Tree, rule: Rule, terms: Terms) -> Found:
    for path in _wanted(tree, rule, terms):
        if tree.kind(path) != "link":
            yield path, f"must be a link to {rule['target']}"
        elif tree.target(path) != rule["target"]:
            yield path, f"must be a link to {rule['target']}, is one to {tree.target(path)}"


def _judge_no_lines(tree: Tree, rule: Rule, terms: Terms) -> Found:
    pattern = re.compile(rule["pattern"].replace(BUILD_USER, re.escape(terms.build_user)).encode())
    kept = _kept(tree, rule, terms)
    for path in _matches(tree, rule, terms):
        if path in kept or tree.kind(path) != "file":
            continue
        # What the line says may be a secret.
        numbers = [str(n) for n, line in enumerate(tree.read(path).splitlines(), 1) if pattern.search(line)]
        if numbers:
            yield path, f"must not have such a line: {', '.join(numbers)}"


_JUDGES: dict[str, t.Callable[[Tree, Rule, Terms], Found]] = {
    "absent": _judge_absent,
    "empty_directory": _judge_empty_directory,
    "no_files": _judge_no_files,
    "content": _judge_content,
    "link": _judge_link,
    "no_lines": _judge_no_lines,
}


def describe(tree: FolderTree | DiskTree) -> dict[str, t.Any]:
    """What was read, and what was not."""
    if isinstance(tree, FolderTree):
        return {"format": "folder", "mounts": {}, "unread": []}
    mounts = {place: f"partition {volume.number} ({volume.type})" for place, volume in sorted(tree.mounts.items())}
    return {"format": tree.format, "mounts": mounts, "unread": tree.unread}
