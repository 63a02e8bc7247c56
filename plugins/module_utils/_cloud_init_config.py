# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""The scripts in a cloud-config as cloud-init will write them, and YAML that means something else than it seems."""

from __future__ import annotations

import dataclasses
import itertools
import re
import typing as t
from array import array

from ansible_collections.goldsmith.images.plugins.module_utils import _cloud_init_yaml as yaml
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_parts import (
    GZIP,
    MIME_KINDS,
    decode_base64,
    gunzip,
)
from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import Finding, Source, Text, finding

if t.TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND_KEYS = ("bootcmd", "runcmd")
#: cloud-init runs what lies here, and only what may be executed.
SCRIPT_FOLDERS = re.compile(r"/var/lib/cloud/scripts/per-(boot|instance|once)/")
_HEADER = "#!/bin/sh\n"
_SECRET_KEY = re.compile(r"(?i)pass|secret|token|private|hashed")
_QUOTE = "Put the whole item in single quotes, or write it as a block after `- |`."


@dataclasses.dataclass(frozen=True)
class Script:
    """A script as it will be run."""

    text: Text
    origin: str

    @property
    def shebang(self) -> str:
        first = self.text.value.split("\n", 1)[0]
        return first[2:].strip() if first.startswith("#!") else ""

    @property
    def interpreter(self) -> str:
        """The program's name: sh, bash, python3, ..."""
        words = self.shebang.split()
        if words and words[0].rsplit("/", 1)[-1] == "env":
            words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        if len(words) > 1 and words[0].endswith("busybox"):
            words = words[1:]
        return words[0].rsplit("/", 1)[-1] if words else ""


@dataclasses.dataclass
class Config:
    """What a cloud-config holds."""

    root: t.Any = None
    scripts: list[Script] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    secrets: set[str] = dataclasses.field(default_factory=set)
    #: User-data within user-data, the entries of an archive: kind, origin and text.
    inner: list[tuple[str, str, Text]] = dataclasses.field(default_factory=list)


def parse(text: Text, origin: str, kind: str = "cloud-config") -> Config:
    """Read a cloud-config, a cloud-config archive or a network-config."""
    reader = _Reader(text, origin)
    try:
        root = yaml.compose(text)
    except yaml.YamlProblem as problem:
        place = text.at(problem.line, problem.column) if problem.line else None
        line = text.line(problem.line) if problem.line else ""
        trap = not isinstance(problem, yaml.TooMuch) and re.match(r"\s*-\s+(\[\[|.*:\s|[&*!%@`{\[])", line)
        reader.note(place, "error", "yaml", f"This cannot be read as YAML: {problem}.", _QUOTE if trap else "")
        return reader.config
    reader.config.root = root
    if kind == "archive":
        reader.archive(root)
    elif root is not None and not yaml.is_mapping(root):
        reader.note(
            yaml.position(text, root), "error", "yaml", f"A {kind} is a mapping of keys, this is something else."
        )
    elif root is not None:
        reader.secrets(root)
        if kind == "cloud-config":
            reader.cloud_config(root)
    return reader.config


class _Reader:
    def __init__(self, text: Text, origin: str) -> None:
        self.text = text
        self.origin = origin
        self.config = Config()

    def note(self, place: tuple[int, int] | None, severity: str, code: str, message: str, suggestion: str = "") -> None:
        self.config.findings.append(finding(self.text, self.origin, place, severity, "yaml", code, message, suggestion))

    def note_at(self, node: t.Any, severity: str, code: str, message: str, suggestion: str = "") -> None:
        self.note(yaml.position(self.text, node), severity, code, message, suggestion)

    def secrets(self, root: t.Any) -> None:
        """Remember the values that no message may show."""
        seen: set[int] = set()
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if yaml.is_sequence(node):
                waiting += node.value
            elif yaml.is_mapping(node):
                for key, _unused, value in yaml.items(node):
                    if yaml.is_scalar(value) and _SECRET_KEY.search(key) and len(value.value) > 4:
                        self.config.secrets.add(value.value)
                    waiting.append(value)

    def cloud_config(self, root: t.Any) -> None:
        seen = set()
        for key, key_node, _unused in yaml.items(root):
            if key in seen:
                self.note_at(
                    key_node,
                    "error",
                    "duplicate-key",
                    f"{key} stands here for the second time: only this one counts, the first is ignored.",
                    "Put both into one.",
                )
            seen.add(key)
        for key in COMMAND_KEYS:
            node = yaml.get(root, key)
            if node is not None and node.tag != yaml.NULL:
                self.commands(key, node)
        files = yaml.get(root, "write_files")
        for number, entry in enumerate(files.value if yaml.is_sequence(files) else []):
            if yaml.is_mapping(entry):
                self.written(number, entry)

    def commands(self, key: str, node: t.Any) -> None:
        """What util.shellify makes of runcmd and bootcmd: strings as they are, lists quoted word by word."""
        if not yaml.is_sequence(node):
            self.note_at(node, "error", "item-type", f"{key} must be a list of commands.", "Begin each with `- `.")
            return
        value = [_HEADER]
        places = array("i", [-1]) * len(_HEADER)
        for item in node.value:
            pieces = self.item(key, item)
            if pieces:
                for piece, where in (*pieces, ("\n", [-1])):
                    value.append(piece)
                    places.extend(where)
        self.config.scripts.append(Script(Text("".join(value), self.text.source, places), self._origin(key)))

    def item(self, key: str, item: t.Any) -> list[tuple[str, Sequence[int]]]:
        if yaml.is_scalar(item) and item.tag == yaml.STRING:
            text = yaml.scalar(self.text, item)
            return [(text.value, text.places)]
        if yaml.is_scalar(item) and item.tag == yaml.NULL:
            return []
        if yaml.is_sequence(item) and all(yaml.is_scalar(word) for word in item.value):
            return self.words(item)
        if yaml.is_sequence(item):
            what, hint = "YAML reads it as a list within a list", "Single brackets in quotes: '[ -f x ]'. " + _QUOTE
        elif yaml.is_mapping(item):
            what, hint = "YAML reads it as a key and a value because of the colon and space", _QUOTE
        else:
            what, hint = f"YAML reads it as {item.tag.rsplit(':', 1)[-1]}", _QUOTE
        self.note_at(item, "error", "item-type", f"This {key} item is not a command: {what}.", hint)
        return []

    def words(self, item: t.Any) -> list[tuple[str, Sequence[int]]]:
        pieces: list[tuple[str, Sequence[int]]] = []
        for word in item.value:
            text = yaml.scalar(self.text, word)
            pieces.append((" '" if pieces else "'", [-1] * (2 if pieces else 1)))
            quoted = text.value.replace("'", "'\\''")
            copies = (4 if char == "'" else 1 for char in text.value)
            pieces.append((quoted, array("i", itertools.chain(*map(itertools.repeat, text.places, copies)))))
            pieces.append(("'", [-1]))
        return pieces

    def written(self, number: int, entry: t.Any) -> None:
        """A script among the files that are written."""
        path = yaml.string(entry, "path") or f"entry {number + 1}"
        node = yaml.get(entry, "content")
        if not yaml.is_scalar(node):
            return
        origin = self._origin(f"write_files {path}")
        try:
            text = self.content(entry, node, path)
        except ValueError as error:
            self.note_at(node, "error", "content", f"The content of {path} cannot be decoded: {error}.")
            return
        if text is None:
            return
        if SCRIPT_FOLDERS.match(path):
            mode = yaml.string(entry, "permissions", "0644")
            if not re.search(r"[1357][0-7]{0,2}$", mode[-3:]):
                self.note_at(
                    yaml.get(entry, "permissions") or node,
                    "error",
                    "not-executable",
                    f"{path} has mode {mode}: cloud-init runs only what may be executed.",
                    "permissions: '0755'",
                )
            self.config.scripts.append(Script(text, origin))
        elif text.value.startswith("#!"):
            self.config.scripts.append(Script(text, origin))

    def content(self, entry: t.Any, node: t.Any, path: str) -> Text | None:
        """The content as it will be written; None if that is not text."""
        encoding = yaml.string(entry, "encoding").lower()
        if encoding in ("", "text/plain") and not node.tag.endswith(":binary"):
            return yaml.scalar(self.text, node)
        data = (
            decode_base64(node.value)
            if "b64" in encoding or "base64" in encoding or node.tag.endswith(":binary")
            else b""
        )
        if data.startswith(GZIP):
            data = gunzip(data)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            return None
        return Text.whole(Source(self.text.source.file, text, f"{path}, decoded"))

    def archive(self, root: t.Any) -> None:
        if not yaml.is_sequence(root):
            place = yaml.position(self.text, root) if root is not None else None
            self.note(place, "error", "yaml", "A cloud-config-archive is a list of parts.")
            return
        for number, entry in enumerate(root.value, 1):
            content = yaml.get(entry, "content") if yaml.is_mapping(entry) else entry
            if not yaml.is_scalar(content):
                continue
            text = yaml.scalar(self.text, content)
            mime = yaml.string(entry, "type") if yaml.is_mapping(entry) else ""
            name = yaml.string(entry, "filename") if yaml.is_mapping(entry) else ""
            origin = f"entry {number}" + (f" ({name})" if name else "")
            self.config.inner.append((MIME_KINDS.get(mime, "auto"), self._origin(origin), text))

    def _origin(self, name: str) -> str:
        return name if self.origin == "user-data" else f"{self.origin}, {name}"
