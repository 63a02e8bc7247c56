# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""YAML with positions: which character of a file each character of a value comes from."""

from __future__ import annotations

import typing as t
from array import array

from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import Text

try:
    import yaml
except ImportError:
    HAS_YAML = False
else:
    HAS_YAML = True
    Loader: t.Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

if t.TYPE_CHECKING:
    from collections.abc import Iterator

STRING = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"
_MAX_DEPTH = 100
#: Of all values with their aliases written out, which can make a thousand times of what stands in the file.
_MAX_SIZE = 512 << 10
_HEX = {"x": 2, "u": 4, "U": 8}


class YamlProblem(Exception):
    """The text is not YAML."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class TooMuch(YamlProblem):
    """It is YAML, and more of it than is taken apart."""


def compose(text: Text) -> t.Any:
    """The root node, None for an empty document."""
    try:
        _require_small(text.value)
        return yaml.compose(text.value, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise YamlProblem(", ".join(filter(None, (error.context, error.problem))), *position) from error
    except yaml.YAMLError as error:
        raise YamlProblem(str(error).split("\n", maxsplit=1)[0]) from error


def _require_small(text: str) -> None:
    """Nodes are composed by recursion, which ends the process where the nesting is too deep; events are not."""
    anchored: dict[str, int] = {}
    # Anchor and size of the collections that are open; the first is the document.
    names: list[str | None] = [None]
    sizes = [0]
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            names.append(event.anchor)
            sizes.append(0)
        elif isinstance(event, (yaml.NodeEvent, yaml.CollectionEndEvent)):
            if isinstance(event, yaml.CollectionEndEvent):
                name, size = names.pop(), sizes.pop() + 1
            elif isinstance(event, yaml.AliasEvent):
                name, size = None, anchored.get(event.anchor, 0)
            else:
                name, size = event.anchor, len(event.value) + 1
            if name is not None:
                anchored[name] = size
            sizes[-1] += size
        problem = "nested too deeply" if len(sizes) > _MAX_DEPTH + 1 else ""
        problem = "too large with all its aliases" if sizes[-1] > _MAX_SIZE else problem
        if problem:
            raise TooMuch(f"it is {problem}", event.start_mark.line + 1, event.start_mark.column + 1)


def is_mapping(node: t.Any) -> bool:
    return isinstance(node, yaml.MappingNode)


def is_sequence(node: t.Any) -> bool:
    return isinstance(node, yaml.SequenceNode)


def is_scalar(node: t.Any) -> bool:
    return isinstance(node, yaml.ScalarNode)


def items(node: t.Any) -> Iterator[tuple[str, t.Any, t.Any]]:
    """Key, key node and value node of each entry of a mapping."""
    for key, value in node.value:
        if is_scalar(key):
            yield key.value, key, value


def get(node: t.Any, name: str) -> t.Any:
    """The value that counts: of keys that are there twice, the last."""
    return {key: value for key, _unused, value in items(node)}.get(name) if is_mapping(node) else None


def string(node: t.Any, name: str, default: str = "") -> str:
    value = get(node, name)
    return value.value if is_scalar(value) else default


def find(root: t.Any, path: str) -> t.Any:
    """The node that a dotted path such as users.0.name leads to, or the last one on the way."""
    node = root
    for word in path.split("."):
        if is_sequence(node) and word.isdigit() and int(word) < len(node.value):
            node = node.value[int(word)]
        elif is_mapping(node):
            keys = {key: (key_node, value) for key, key_node, value in items(node)}
            if word not in keys:
                return node
            node = keys[word][1]
    return node


def position(text: Text, node: t.Any) -> tuple[int, int] | None:
    return text.position(node.start_mark.index)


def scalar(text: Text, node: t.Any) -> Text:
    """A scalar's value as a text whose characters know where they stand."""
    raw, start, end = text.value, node.start_mark.index, node.end_mark.index
    if node.style == "|":
        indices = _literal(node.value, raw, start)
    else:
        indices = _flowing(node.value, raw, start, end, node.style or "")
    last = len(text.places) - 1
    return Text(node.value, text.source, array("i", (text.places[min(index, last)] for index in indices)))


def _literal(value: str, raw: str, start: int) -> list[int]:
    """A block of lines as they are: only their indentation is missing."""
    at = raw.find("\n", start) + 1
    lines = value.split("\n")
    indent = None
    result: list[int] = []
    for line in lines:
        end = raw.find("\n", at)
        end = len(raw) if end < 0 else end
        if indent is None and line:
            indent = len(raw[at:end].rstrip("\r")) - len(line)
        first = min(at + (indent or 0), end)
        result += [min(first + number, end) for number in range(len(line) + 1)]
        at = min(end + 1, len(raw))
    return result[: len(value)]


def _flowing(value: str, raw: str, start: int, end: int, style: str) -> list[int]:
    """Folded, quoted and plain scalars: white space may stand for a line's end, an escape for another character."""
    at = raw.find("\n", start) + 1 if style == ">" else start + bool(style)
    result: list[int] = []
    for char in value:
        if char in " \t\n" and not (style == '"' and raw[at : at + 1] == "\\"):
            result.append(at)
            at += raw[at : at + 1] in (" ", "\t") or char == "\n"
            continue
        at = _skip(raw, at, end, style) if raw[at : at + 1] != char else at
        result.append(at)
        if style == '"' and raw[at : at + 1] == "\\":
            at += 2 + _HEX.get(raw[at + 1 : at + 2], 0)
        else:
            at += 2 if style == "'" and char == "'" else 1
    return result


def _skip(raw: str, at: int, end: int, style: str) -> int:
    """The next character that is not a line's end or its indentation."""
    while at < end and (raw[at] in " \t\r\n" or (style == '"' and raw[at : at + 2] in ("\\\n", "\\\r"))):
        at += 1
    return at
