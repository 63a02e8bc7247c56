# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone code.

"""Remove secret values from text that other programs have printed."""

from __future__ import annotations

import json
import re
import typing as t

MASK = "********"
# Shorter values ("1", "on") cannot be told from ordinary output; masking them would destroy every message.
MIN_LENGTH = 3
# A line of a multi-line secret must be a little longer: "---" and "}" are lines of most documents.
MIN_LINE_LENGTH = 4


def leaves(value: t.Any) -> t.Iterator[str]:
    """Every scalar inside a nested value, as the text a program would print for it."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)


def _escaped(text: str) -> set[str]:
    """The forms in which JSON and HCL writers, Go's among them, print a string."""
    forms = {text}
    for ascii_only in (True, False):
        quoted = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        forms.add(quoted)
        go = quoted.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        forms.add(go)
        # HCL keeps template markers apart by doubling their first character.
        forms.add(quoted.replace("${", "$${").replace("%{", "%%{"))
    forms.add(text.replace("\r", "\\r").replace("\n", "\\n"))
    return forms


def variants(secret: str) -> set[str]:
    """All texts that give the secret away, in plain and in Packer's machine-readable spelling."""
    pieces = {secret, secret.strip()}
    pieces.update(line for line in secret.splitlines() if len(line.strip()) >= MIN_LINE_LENGTH)
    pieces.update([piece.strip() for piece in pieces])
    forms: set[str] = set()
    for piece in pieces:
        if len(piece) >= MIN_LENGTH:
            forms.update(_escaped(piece))
    forms.update([form.replace(",", "%!(PACKER_COMMA)") for form in forms])
    return {form for form in forms if len(form) >= MIN_LENGTH}


class Redactor:
    """Replaces every known form of the given secrets; the longest form wins, so no rest of one stays."""

    def __init__(self, secrets: t.Any = ()) -> None:
        forms: set[str] = set()
        for secret in leaves(list(secrets.values()) if isinstance(secrets, dict) else secrets):
            forms.update(variants(secret))
        ordered = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(re.escape(form) for form in ordered)) if ordered else None

    def text(self, text: str) -> str:
        return self._pattern.sub(MASK, text) if self._pattern else text

    def data(self, value: t.Any) -> t.Any:
        """The same structure with every string redacted, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.data(key): self.data(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.data(item) for item in value]
        return value
