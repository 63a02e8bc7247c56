# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Enforce the rules of a clean-up contract (roles/cleanup/files/contract.yml) in a root tree."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import os
import re
import shutil
import stat
import tempfile
import typing as t

STATES = ("absent", "empty_directory", "no_files", "content", "link", "no_lines")
# What each state cannot do without.
REQUIRED = {"content": ("content",), "link": ("target",), "no_lines": ("pattern",)}
BUILD_USER = "{build_user}"


class ImageCleanupError(Exception):
    """A rule that makes no sense, or a path that cannot be cleaned."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule of the contract."""

    id: str
    state: str
    paths: tuple[str, ...]
    reason: str = ""
    keep: tuple[str, ...] = ()
    live_keep: tuple[str, ...] = ()
    volatile: bool = False
    final: bool = False
    choice: tuple[tuple[str, str], ...] = ()
    if_exists: str = ""
    unless_contains: tuple[str, str] = ("", "")
    content: str = ""
    mode: int = 0o644
    target: str = ""
    pattern: str = ""


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing to do to one path: remove, write, link."""

    rule: Rule
    verb: str
    path: str
    content: bytes = b""


@dataclasses.dataclass(frozen=True)
class Context:
    """What decides which rules hold and what they must not touch."""

    root: str = "/"
    choices: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep_paths: tuple[str, ...] = ()
    in_use: tuple[str, ...] = ()
    skip_rules: tuple[str, ...] = ()
    live: bool = False
    final: bool = True
    build_user: str = ""

    def inside(self, path: str) -> str:
        return os.path.join(self.root, path.lstrip("/"))

    def outside(self, path: str) -> str:
        return "/" + os.path.relpath(path, self.root) if self.root != "/" else path


def make_rule(data: t.Mapping[str, t.Any]) -> Rule:
    """Check one rule as it stands in the contract."""
    known = {field.name for field in dataclasses.fields(Rule)}
    name = str(data.get("id", "?"))
    unknown = sorted(set(data) - known)
    if unknown:
        raise ImageCleanupError(f"rule {name}: unknown keys: {', '.join(unknown)}")
    for key in ("id", "state", "paths", *REQUIRED.get(str(data.get("state")), ())):
        if data.get(key) is None:
            raise ImageCleanupError(f"rule {name}: '{key}' is missing")
    if data["state"] not in STATES:
        raise ImageCleanupError(f"rule {name}: state {data['state']!r} is none of {', '.join(STATES)}")
    for path in data["paths"]:
        depth = [part for part in str(path).split("/") if part]
        if not str(path).startswith("/") or ".." in depth or not depth or set(depth[0]) & set("*?[{"):
            raise ImageCleanupError(f"rule {name}: {path!r} is not an absolute path below a named directory of /")
    unless = data.get("unless_contains") or {}
    return Rule(
        id=name,
        state=data["state"],
        paths=tuple(data["paths"]),
        reason=data.get("reason", ""),
        keep=tuple(data.get("keep") or ()),
        live_keep=tuple(data.get("live_keep") or ()),
        volatile=bool(data.get("volatile")),
        final=bool(data.get("final")),
        choice=tuple((str(key), str(value)) for key, value in (data.get("choice") or {}).items()),
        if_exists=data.get("if_exists", ""),
        unless_contains=(unless.get("path", ""), unless.get("text", "")),
        content=data.get("content", ""),
        mode=int(str(data.get("mode", "0644")), 8),
        target=data.get("target", ""),
        pattern=data.get("pattern", ""),
    )


def file_contains(path: str, text: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return text.encode() in stream.read()
    except OSError:
        return False


def holds(rule: Rule, context: Context) -> bool:
    """Whether the rule is to be enforced here and now."""
    if rule.id in context.skip_rules or (rule.final and not context.final):
        return False
    if any(context.choices.get(key) != value for key, value in rule.choice):
        return False
    if BUILD_USER in rule.pattern and not context.build_user:
        return False
    if rule.if_exists and not os.path.exists(context.inside(rule.if_exists)):
        return False
    path, text = rule.unless_contains
    return not (path and file_contains(context.inside(path), text))


def expand(patterns: t.Iterable[str], context: Context) -> list[str]:
    """The existing paths that the globs stand for. A path that leads through a link is left out.

    Someone's ~/.ssh may be a link to /etc: what it holds is not known hosts.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if BUILD_USER in pattern:
            if not context.build_user:
                continue
            pattern = pattern.replace(BUILD_USER, glob.escape(context.build_user))
        for path in sorted(glob.glob(context.inside(pattern))):
            parent = os.path.dirname(path)
            if os.path.lexists(path) and os.path.realpath(parent) == os.path.normpath(parent):
                found[path] = None
    return list(found)


def kept_paths(rule: Rule, context: Context) -> list[str]:
    patterns = [*rule.keep, *context.keep_paths, *map(glob.escape, context.in_use)]
    if context.live:
        patterns += rule.live_keep
    return expand(patterns, context)


def removals(path: str, keep: t.Sequence[str]) -> t.Iterator[str]:
    """What to remove so that `path` is gone but for what is kept: itself, or parts of it."""
    if any(path == kept or path.startswith(kept + "/") for kept in keep) or os.path.ismount(path):
        return
    if os.path.isdir(path) and not os.path.islink(path) and any(kept.startswith(path + "/") for kept in keep):
        for name in sorted(os.listdir(path)):
            yield from removals(os.path.join(path, name), keep)
    else:
        yield path


def files_below(directory: str, keep: t.Sequence[str]) -> t.Iterator[str]:
    """Everything below that is no directory, on the same file system."""
    device = os.lstat(directory).st_dev
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if any(path == kept or path.startswith(kept + "/") for kept in keep):
            continue
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            yield path
        elif info.st_dev == device:
            yield from files_below(path, keep)


def decide(rule: Rule, context: Context) -> list[Action]:
    """What has to be done for one rule that holds. Nothing is touched."""
    keep = kept_paths(rule, context)
    if rule.state in ("content", "link"):
        return list(_decide_written(rule, context, keep))
    matches = expand(rule.paths, context)
    if rule.state == "no_lines":
        return list(_decide_lines(rule, matches, keep, context.build_user))
    paths: t.Iterable[str]
    directories = [path for path in matches if os.path.isdir(path) and not os.path.islink(path)]
    if rule.state == "absent":
        paths = (part for path in matches for part in removals(path, keep))
    elif rule.state == "empty_directory":
        paths = (
            part
            for path in directories
            for name in sorted(os.listdir(path))
            for part in removals(os.path.join(path, name), keep)
        )
    else:
        paths = (part for path in directories for part in files_below(path, keep))
    return [Action(rule, "remove", path) for path in dict.fromkeys(paths)]


def _decide_written(rule: Rule, context: Context, keep: t.Sequence[str]) -> t.Iterator[Action]:
    for pattern in rule.paths:
        path = context.inside(pattern)
        if path in keep:
            continue
        parent = os.path.dirname(path)
        # The role's own files may need a directory; those of others tell that there is nothing to say.
        if not os.path.isdir(os.path.dirname(parent)):
            continue
        if rule.state == "link":
            if not os.path.islink(path) or os.readlink(path) != rule.target:
                yield Action(rule, "link", path)
        elif not is_content(path, rule):
            if os.path.ismount(path):
                raise ImageCleanupError(f"{context.outside(path)}: is a mount point and cannot be replaced")
            yield Action(rule, "write", path, rule.content.encode())


def is_content(path: str, rule: Rule) -> bool:
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        return stream.read() == rule.content.encode() and stat.S_IMODE(os.lstat(path).st_mode) == rule.mode


def _decide_lines(rule: Rule, matches: t.Iterable[str], keep: t.Sequence[str], build_user: str) -> t.Iterator[Action]:
    pattern = re.compile(rule.pattern.replace(BUILD_USER, re.escape(build_user)).encode())
    for path in matches:
        if path in keep or os.path.islink(path) or not os.path.isfile(path):
            continue
        with open(path, "rb") as stream:
            lines = stream.read().splitlines(keepends=True)
        wanted = [line for line in lines if not pattern.search(line)]
        if wanted != lines:
            yield Action(rule, "write", path, b"".join(wanted))


def size_of(path: str) -> int:
    """Bytes on disk that removing the path gives back."""
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode):
        return info.st_blocks * 512 if info.st_nlink == 1 else 0
    return info.st_blocks * 512 + sum(size_of(os.path.join(path, name)) for name in os.listdir(path))


def remove(path: str) -> int:
    """Remove a file, link or tree; return the bytes freed. What is gone already is fine: services tidy up too."""
    try:
        freed = size_of(path)
        if os.path.isdir(path) and not os.path.islink(path):
            for folder, names, _files in os.walk(path):
                for name in names:
                    below = os.path.join(folder, name)
                    if os.path.ismount(below):
                        raise ImageCleanupError(f"{path}: {below} is mounted there")
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        return 0
    return freed


def write(path: str, content: bytes, mode: int) -> None:
    """Replace the file, without a moment in which it is half written."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".image_cleanup.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), mode)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def link(path: str, target: str) -> None:
    temporary = f"{path}.image_cleanup"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, path)


def apply(action: Action) -> int:
    """Do it; return the bytes freed."""
    if action.verb == "remove":
        return remove(action.path)
    if action.verb == "link":
        if os.path.isdir(action.path) and not os.path.islink(action.path):
            raise ImageCleanupError(f"{action.path}: is a directory, a link is wanted")
        link(action.path, action.rule.target)
    else:
        old = stat.S_IMODE(os.lstat(action.path).st_mode) if action.rule.state == "no_lines" else action.rule.mode
        write(action.path, action.content, old)
    return 0


def user_exists(name: str, root: str = "/") -> bool:
    """Whether the accounts files know the user; not asked through NSS, which may know others."""
    path = os.path.join(root, "etc/passwd")
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return any(fnmatch.fnmatchcase(line, f"{glob.escape(name)}:*") for line in stream)
