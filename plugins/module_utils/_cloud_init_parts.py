# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""What cloud-init makes of user-data: which kind it is, and the parts that are in it."""

from __future__ import annotations

import binascii
import dataclasses
import email
import email.message
import os
import re
import stat
import typing as t
import zlib

from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import (
    CloudInitError,
    Finding,
    Source,
    Text,
    finding,
)

if t.TYPE_CHECKING:
    pass

#: More than any cloud takes; what is larger is not read.
MAX_BYTES = 256 << 10
GZIP = b"\x1f\x8b"
_MAX_DEPTH = 5

# As in cloudinit/handlers/__init__.py: a text's beginning, in any case, decides. The longest must be tried first.
_BEGINNINGS = (
    ("#cloud-config-archive", "archive"),
    ("#cloud-config-jsonp", "jsonp"),
    ("## template: jinja", "jinja"),
    ("#cloud-boothook", "boothook"),
    ("#include-once", "include"),
    ("#part-handler", "part-handler"),
    ("#cloud-config", "cloud-config"),
    ("#include", "include"),
    ("#!", "script"),
)
MIME_KINDS = {
    "text/cloud-config": "cloud-config",
    "text/cloud-config-archive": "archive",
    "text/cloud-config-jsonp": "jsonp",
    "text/cloud-boothook": "boothook",
    "text/jinja2": "jinja",
    "text/part-handler": "part-handler",
    "text/x-include-url": "include",
    "text/x-include-once-url": "include",
    "text/x-shellscript": "script",
    "text/x-shellscript-per-boot": "script",
    "text/x-shellscript-per-instance": "script",
    "text/x-shellscript-per-once": "script",
}
_JINJA_BEGINS = re.compile(r"\{[{%#]")
_JINJA = {"{{": "}}", "{%": "%}", "{#": "#}"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of user-data of one kind."""

    kind: str
    text: Text
    origin: str
    #: The text before its templates were hidden, as cloud-init's schema wants it.
    template: Text | None = None


@dataclasses.dataclass
class Parts:
    """The parts of one file, with what was found while it was taken apart."""

    found: list[Part] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    not_evaluated: list[str] = dataclasses.field(default_factory=list)


def read(path: str) -> bytes:
    """The content of a file; never more than MAX_BYTES, and never from something that could block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            state = os.fstat(stream.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise CloudInitError(f"{path} is neither a file nor a directory")
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise CloudInitError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise CloudInitError(too_large(path, state.st_size))
    return data


def too_large(path: str, size: int) -> str:
    return (
        f"{path} has {size} bytes; more than {MAX_BYTES} are not checked, and no cloud accepts them as user-data. "
        "Have the user-data fetch what is large"
    )


def gunzip(data: bytes) -> bytes:
    """The content of gzip, which may unpack to a thousand times its size."""
    machine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = machine.decompress(data, MAX_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"it begins like gzip and cannot be unpacked: {error}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes, which is more than is checked")
    if not machine.eof:
        raise ValueError("it begins like gzip and ends too early")
    return content


def kind_of(text: str) -> str:
    """The kind that cloud-init sees in a text; empty if it would ignore it."""
    if "mime-version:" in text[:4096].lower():
        return "mime"
    beginning = text[:200].lstrip().lower()
    return next((kind for prefix, kind in _BEGINNINGS if beginning.startswith(prefix)), "")


def take_apart(label: str, data: bytes, kind: str, origin: str = "user-data") -> Parts:
    """All parts of user-data; `kind` is what the caller knows of it, or `auto`."""
    parts = Parts()
    _decode(parts, label, data, kind, origin, decoded="", depth=0)
    return parts


def _decode(parts: Parts, label: str, data: bytes, kind: str, origin: str, decoded: str, depth: int) -> None:
    try:
        if data.startswith(GZIP):
            data = gunzip(data)
            decoded = f"{decoded}, unpacked" if decoded else "unpacked"
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        parts.findings.append(_broken(label, origin, f"byte {error.start + 1} is not UTF-8: cloud-init ignores it"))
        return
    except ValueError as error:
        parts.findings.append(_broken(label, origin, str(error)))
        return
    if "\0" in text:
        parts.findings.append(_broken(label, origin, "it holds binary data: cloud-init can make nothing of it"))
        return
    expand(parts, Text.whole(Source(label, text, decoded)), kind, origin, depth)


def _broken(label: str, origin: str, message: str) -> Finding:
    return Finding(label, origin, None, None, "error", "content", "not-text", message)


def expand(parts: Parts, text: Text, kind: str, origin: str, depth: int = 0) -> None:
    """Add a text's parts, those of its own parts included."""
    if depth > _MAX_DEPTH:
        parts.not_evaluated.append(f"{text.source.file}: {origin}: parts within parts more than {_MAX_DEPTH} deep")
        return
    if text.value.startswith("\ufeff"):
        parts.findings.append(
            finding(
                text,
                origin,
                text.position(0),
                "error",
                "content",
                "byte-order-mark",
                "A byte order mark stands before the first line, so cloud-init does not see what this is.",
                "Save the file as UTF-8 without BOM.",
            )
        )
        text = text.slice(1)
    if kind == "auto":
        kind = kind_of(text.value)
    if kind == "jinja":
        _expand_template(parts, text, origin, depth)
    elif kind == "mime":
        _expand_mime(parts, text, origin, depth)
    elif kind == "include":
        _expand_include(parts, text, origin, depth)
    else:
        parts.found.append(Part(kind, text, origin))


def _expand_template(parts: Parts, text: Text, origin: str, depth: int) -> None:
    """Hide the templates from who cannot read them: expressions become words, all branches of statements stay."""
    end = text.value.find("\n") + 1
    hidden = text.replaced(_without_templates(text.value))
    inner = Parts()
    expand(inner, hidden.slice(end if end else len(text.value)), "auto", origin, depth + 1)
    parts.found += [dataclasses.replace(part, template=text) for part in inner.found]
    parts.findings += inner.findings
    parts.not_evaluated += inner.not_evaluated


def _without_templates(text: str) -> str:
    """Words in place of expressions, blanks in place of statements and comments; an end is looked for only once."""
    pieces = []
    done = at = 0
    endless = set()
    while opening := _JINJA_BEGINS.search(text, at):
        closing = _JINJA[opening[0]]
        end = -1 if closing in endless else text.find(closing, opening.end())
        if end < 0:
            endless.add(closing)
            at = opening.start() + 1
            continue
        pieces.append(text[done : opening.start()])
        done = at = end + len(closing)
        pieces.append(re.sub(r"[^\n]", "x" if closing == "}}" else " ", text[opening.start() : done]))
    return "".join([*pieces, text[done:]])


def _expand_mime(parts: Parts, text: Text, origin: str, depth: int) -> None:
    message = email.message_from_string(text.value)
    for defect in message.defects:
        parts.findings.append(
            finding(text, origin, None, "error", "content", "mime", f"The MIME message is broken: {defect}.")
        )
    after = 0
    number = 0
    for part in message.walk():
        if part.is_multipart():
            continue
        number += 1
        inner = f"part {number}" + (f" ({part.get_filename()})" if part.get_filename() else "")
        inner = inner if origin == "user-data" else f"{origin}, {inner}"
        kind = _kind_of_part(part)
        body = part.get_payload()
        body = body if isinstance(body, str) else ""
        start = text.value.find(body, after)
        if str(part.get("Content-Transfer-Encoding", "7bit")).lower() in ("7bit", "8bit", "binary") and start >= 0:
            after = start + len(body)
            expand(parts, text.slice(start, after), kind, inner, depth + 1)
        else:
            data = part.get_payload(decode=True)
            _decode(parts, text.source.file, data if isinstance(data, bytes) else b"", kind, inner, inner, depth + 1)


def _kind_of_part(part: email.message.Message) -> str:
    kind = MIME_KINDS.get(part.get_content_type(), "auto")
    # A shell script that does not begin like one is looked at again, as is all that says nothing of itself.
    return "auto" if kind == "script" and not str(part.get_payload()).startswith("#!") else kind


def _expand_include(parts: Parts, text: Text, origin: str, depth: int) -> None:
    for line in text.value.splitlines():
        address = re.sub(r"(?i)^#include(-once)?", "", line.strip()).strip()
        if not address or address.startswith("#"):
            continue
        if not address.startswith("file:///"):
            parts.not_evaluated.append(f"{text.source.file}: {address} is included and was not fetched")
            continue
        path = address[len("file://") :]
        _decode(parts, path, read(path), "auto", f"included by {text.source.file}", "", depth + 1)


def decode_base64(data: str) -> bytes:
    try:
        return binascii.a2b_base64("".join(data.split()))
    except binascii.Error as error:
        raise ValueError(f"it is not base64: {error}") from error
