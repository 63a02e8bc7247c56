# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""Bring a list of files, links and directories into a wanted state."""

from __future__ import annotations

import dataclasses
import errno
import grp
import os
import pwd
import re
import shlex
import stat
import typing as t

MODE = re.compile(r"^0[0-7]{3,4}$")

KIND_ABSENT = "absent"
KIND_FILE = "file"
KIND_LINK = "link"
KIND_DIRECTORY = "directory"
KIND_OTHER = "other"


class ConfigFilesError(Exception):
    """A wish that cannot be fulfilled; the message names the path."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What one path should be."""

    path: str
    state: str = "present"
    content: bytes | None = None
    src: str | None = None
    mode: int = 0o644
    directory_mode: int = 0o755
    owner: str = "root"
    group: str = "root"
    validate: str | None = None
    force: bool = True


@dataclasses.dataclass(frozen=True)
class Found:
    """What one path is now."""

    kind: str = KIND_ABSENT
    content: bytes = b""
    target: str = ""
    mode: int = 0
    uid: int = -1
    gid: int = -1
    entries: int = 0


@dataclasses.dataclass(frozen=True)
class Step:
    """What has to be done for one path."""

    wish: Wish
    found: Found
    replace: bool = False
    set_mode: bool = False
    set_owner: bool = False
    remove: bool = False
    missing_parents: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return self.replace or self.set_mode or self.set_owner or self.remove


def parse_mode(text: str, path: str) -> int:
    """Accept quoted octal only: an unquoted 0644 arrives from YAML as the decimal number 420."""
    if not MODE.match(text):
        raise ConfigFilesError(f"{path}: the mode must be a quoted octal number such as '0644', not {text!r}")
    return int(text, 8)


def make_wish(options: t.Mapping[str, t.Any]) -> Wish:
    """Check the options of one list entry and turn them into a wish."""
    path = options["path"]
    state = options.get("state") or "present"
    if not os.path.isabs(path):
        raise ConfigFilesError(f"{path}: the path must be absolute")
    content = options.get("content")
    if state == "present" and content is None:
        raise ConfigFilesError(f"{path}: state 'present' needs 'content'")
    if state == "link" and not options.get("src"):
        raise ConfigFilesError(f"{path}: state 'link' needs 'src', the target of the link")
    validate = options.get("validate")
    if validate and "%s" not in validate:
        raise ConfigFilesError(f"{path}: 'validate' needs %s in the place of the file to check")
    return Wish(
        path=os.path.normpath(path),
        state=state,
        content=None if content is None else content.encode("utf-8", "surrogateescape"),
        src=options.get("src"),
        mode=parse_mode(options.get("mode") or "0644", path),
        directory_mode=parse_mode(options.get("directory_mode") or "0755", path),
        owner=options.get("owner") or "root",
        group=options.get("group") or "root",
        validate=validate,
        force=options.get("force") is not False,
    )


def make_wishes(entries: t.Sequence[t.Mapping[str, t.Any]]) -> list[Wish]:
    """The whole list; a path may be named once."""
    wishes = [make_wish(entry) for entry in entries]
    seen: set[str] = set()
    for wish in wishes:
        if wish.path in seen:
            raise ConfigFilesError(f"{wish.path}: named more than once in 'files'")
        seen.add(wish.path)
    return wishes


def look(path: str, with_content: bool = True) -> Found:
    """Read the present state of a path, without following a link."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return Found()
    except NotADirectoryError as error:
        raise ConfigFilesError(f"{path}: a parent of this path is not a directory") from error
    kind = KIND_OTHER
    content = b""
    target = ""
    entries = 0
    if stat.S_ISLNK(info.st_mode):
        kind = KIND_LINK
        target = os.readlink(path)
    elif stat.S_ISDIR(info.st_mode):
        kind = KIND_DIRECTORY
        entries = len(os.listdir(path))
    elif stat.S_ISREG(info.st_mode):
        kind = KIND_FILE
        if with_content:
            with open(path, "rb") as stream:
                content = stream.read()
    return Found(kind, content, target, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, entries)


def uid_of(owner: str) -> int | None:
    if owner.isdigit():
        return int(owner)
    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        return None


def gid_of(group: str) -> int | None:
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def missing_parents(path: str) -> tuple[str, ...]:
    """The parents that have to be made, outermost first."""
    missing: list[str] = []
    parent = os.path.dirname(path)
    while not os.path.isdir(parent):
        if os.path.lexists(parent):
            raise ConfigFilesError(f"{path}: its parent {parent} exists and is not a directory")
        missing.append(parent)
        parent = os.path.dirname(parent)
    return tuple(reversed(missing))


def decide(wish: Wish, found: Found) -> Step:
    """Compare; nothing is touched."""
    if wish.state == "absent":
        if found.kind == KIND_ABSENT:
            return Step(wish, found)
        if found.kind == KIND_DIRECTORY and found.entries:
            raise ConfigFilesError(f"{wish.path}: a directory that is not empty is not removed")
        return Step(wish, found, remove=True)
    if not wish.force and found.kind != KIND_ABSENT:
        return Step(wish, found)
    if found.kind == KIND_DIRECTORY and wish.state != "directory":
        raise ConfigFilesError(f"{wish.path}: is a directory and is not replaced by a {wish.state} file")
    if found.kind == KIND_OTHER or (found.kind == KIND_FILE and wish.state == "directory"):
        raise ConfigFilesError(f"{wish.path}: exists, and is not a file, link or directory that can be replaced")
    parents = missing_parents(wish.path)
    if wish.state == "link":
        right = found.kind == KIND_LINK and found.target == wish.src
        return Step(wish, found, replace=not right, missing_parents=parents)
    wanted_kind = KIND_DIRECTORY if wish.state == "directory" else KIND_FILE
    mode = wish.directory_mode if wish.state == "directory" else wish.mode
    same_kind = found.kind == wanted_kind
    return Step(
        wish,
        found,
        replace=not same_kind or (wish.state == "present" and found.content != wish.content),
        set_mode=not same_kind or found.mode != mode,
        set_owner=not same_kind or found.uid != uid_of(wish.owner) or found.gid != gid_of(wish.group),
        missing_parents=parents,
    )


def validate_command(template: str, path: str) -> list[str]:
    return [word.replace("%s", path) for word in shlex.split(template)]


def _set_attributes(path: str, wish: Wish, mode: int) -> None:
    uid = uid_of(wish.owner)
    gid = gid_of(wish.group)
    if uid is None:
        raise ConfigFilesError(f"{wish.path}: the user {wish.owner!r} does not exist")
    if gid is None:
        raise ConfigFilesError(f"{wish.path}: the group {wish.group!r} does not exist")
    info = os.lstat(path)
    try:
        if (info.st_uid, info.st_gid) != (uid, gid):
            os.chown(path, uid, gid)
        # After chown, which clears the set-uid bits.
        os.chmod(path, mode)
    except OSError as error:
        raise ConfigFilesError(f"{wish.path}: setting owner and mode: {error.strerror}") from error


def _make_link(path: str, target: str) -> None:
    """A link cannot be overwritten in place, so it is made beside and renamed."""
    beside = f"{path}.goldsmith-{os.getpid()}"
    try:
        os.symlink(target, beside)
        os.rename(beside, path)
    except OSError as error:
        if os.path.lexists(beside):
            os.unlink(beside)
        raise ConfigFilesError(f"{path}: making the link: {error.strerror}") from error


def apply(step: Step, staged: str | None, move: t.Callable[[str, str], None]) -> None:
    """Do one step. `staged` is the file with the new content, `move` puts it in its place atomically."""
    wish = step.wish
    if step.remove:
        try:
            if step.found.kind == KIND_DIRECTORY:
                os.rmdir(wish.path)
            else:
                os.unlink(wish.path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise ConfigFilesError(f"{wish.path}: removing: {error.strerror}") from error
        return
    # Asked again: an earlier step of the same list may have made them.
    for parent in missing_parents(wish.path):
        os.mkdir(parent)
        _set_attributes(parent, wish, wish.directory_mode)
    if wish.state == "link":
        if step.replace:
            _make_link(wish.path, wish.src or "")
        return
    if wish.state == "directory":
        if step.replace:
            if step.found.kind == KIND_LINK:
                os.unlink(wish.path)
            os.mkdir(wish.path)
        _set_attributes(wish.path, wish, wish.directory_mode)
        return
    if step.replace and staged is not None:
        _set_attributes(staged, wish, wish.mode)
        move(staged, wish.path)
    _set_attributes(wish.path, wish, wish.mode)


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _attributes_text(mode: int, owner: int | str, group: int | str) -> str:
    return f"mode: {mode:04o}\nowner: {owner}\ngroup: {group}\n"


def diff_of(step: Step) -> list[dict[str, str]]:
    """The difference in the form that ansible prints."""
    wish = step.wish
    found = step.found
    result: list[dict[str, str]] = []
    if step.replace or step.remove:
        before = _text(found.content)
        after = _text(wish.content or b"") if wish.state == "present" else ""
        if found.kind == KIND_LINK:
            before = f"link to {found.target}\n"
        elif found.kind == KIND_DIRECTORY:
            before = "directory\n"
        if wish.state == "link":
            after = f"link to {wish.src}\n"
        elif wish.state == "directory":
            after = "directory\n"
        result.append(
            {
                "before_header": wish.path,
                "after_header": wish.path,
                "before": "(binary)\n" if before is None else before,
                "after": "(binary)\n" if after is None else after,
            }
        )
    if (step.set_mode or step.set_owner) and found.kind in (KIND_FILE, KIND_DIRECTORY):
        uid = uid_of(wish.owner)
        gid = gid_of(wish.group)
        mode = wish.directory_mode if wish.state == "directory" else wish.mode
        result.append(
            {
                "before_header": f"{wish.path} (attributes)",
                "after_header": f"{wish.path} (attributes)",
                "before": _attributes_text(found.mode, found.uid, found.gid),
                "after": _attributes_text(mode, wish.owner if uid is None else uid, wish.group if gid is None else gid),
            }
        )
    return result
