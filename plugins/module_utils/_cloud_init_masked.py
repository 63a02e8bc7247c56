# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""Failures that nobody will hear of, because the script goes on or ends with success."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_text import Finding, finding

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.goldsmith.images.plugins.module_utils._cloud_init_config import Script

_HEREDOC = re.compile(r"<<(-?)\s*(['\"\\]?)(\w+)['\"]?")
_SWALLOWED = re.compile(r"\|\|\s*(true|:|echo|printf|logger)(?=$|[\s;|&)}])([^\n;|&)}]*)(?P<rest>[^\n]*)")
_PIPED = re.compile(r"(?<![|>])\|(?![|&])\s*(?:sudo\s+)?(tee|sh|bash|dash|logger|cat|tail|head|grep|sort)\b")
_ERREXIT = re.compile(r"(?m)(?:^|[;&])\s*set\s+(?:-[a-zA-Z]*e|-o\s+errexit)")
# The same as a list in runcmd.
_ERREXIT_LISTED = re.compile(r"(?m)^'set' '-[a-zA-Z]*e")
_PIPEFAIL = re.compile(r"(?m)set\s+-[a-zA-Z]*o\s+pipefail")
_WORDS_ALONE = re.compile(r"^(?:then|else|elif|fi|do|done|esac|\{|\}|;;|in|case|for|while|until|if)\b|^[\w.-]+\(\)")
_ASSIGNMENT = re.compile(r"^(?:export\s+)?\w+=\S*$")


def look(script: Script) -> Iterator[Finding]:
    """All places where a failure is masked."""
    code = blank(script.text.value)
    for match in _SWALLOWED.finditer(code):
        if re.match(r"\s*[;&]+\s*(exit|return|false)\b", match["rest"]):
            continue
        yield _finding(
            script,
            match.start(),
            "warning",
            "swallowed",
            f"`|| {match[1]}` turns a failure of what stands before it into a success.",
            "Report and go on failing: `|| { echo ... >&2; exit 1; }`",
        )
    pipefail = _PIPEFAIL.search(code) is not None
    for match in _PIPED.finditer(code):
        if not pipefail:
            yield _finding(
                script,
                match.start(),
                "warning" if match[1] in ("tee", "sh", "bash", "dash") else "info",
                "pipe",
                f"The pipe ends with {match[1]}, whose exit status hides a failure of what stands before it.",
                "Write to a file first, then go on with that file.",
            )
    commands = list(_commands(code))
    stops = (
        _ERREXIT.search(code)
        or _ERREXIT_LISTED.search(script.text.value)
        or re.search(r"\s-[a-zA-Z]*e", script.shebang)
    )
    if len(commands) > 1 and not stops:
        yield _finding(
            script,
            commands[0],
            "warning",
            "no-errexit",
            "Nothing stops after a command that fails: only the last one's exit status counts.",
            "Begin with `set -e`.",
        )


def blank(code: str) -> str:
    """The code with comments, quoted strings and here-documents hidden, every character in its place."""
    result = list(code)
    at = 0
    waiting: list[tuple[str, bool]] = []
    while at < len(code):
        char = code[at]
        if char == "\\":
            at += 2
        elif char in "'\"":
            end = _quote_end(code, at, char)
            _hide(result, at + 1, end)
            at = end + 1
        elif char == "#" and (at == 0 or code[at - 1] in " \t\n;&|("):
            end = code.find("\n", at)
            end = len(code) if end < 0 else end
            _hide(result, at, end, " ")
            at = end
        elif char == "\n" and waiting:
            at = _skip_heredocs(code, result, at + 1, waiting)
            waiting = []
        elif code.startswith("<<", at) and not code.startswith("<<<", at):
            match = _HEREDOC.match(code, at)
            if match:
                waiting.append((match[3], match[1] == "-"))
            at = match.end() if match else at + 2
        else:
            at += 3 if code.startswith("<<<", at) else 1
    return "".join(result)


def _quote_end(code: str, at: int, quote: str) -> int:
    end = at + 1
    while end < len(code) and code[end] != quote:
        end += 2 if code[end] == "\\" and quote == '"' else 1
    return min(end, len(code))


def _skip_heredocs(code: str, result: list[str], at: int, waiting: list[tuple[str, bool]]) -> int:
    for word, tabs in waiting:
        while at < len(code):
            end = code.find("\n", at)
            end = len(code) if end < 0 else end
            line = code[at:end]
            _hide(result, at, end, " ")
            at = min(end + 1, len(code))
            if (line.lstrip("\t") if tabs else line) == word:
                break
    return at


def _hide(result: list[str], start: int, end: int, filler: str = "x") -> None:
    for index in range(start, min(end, len(result))):
        if result[index] != "\n" or filler == "x":
            result[index] = filler


def _commands(code: str) -> Iterator[int]:
    """Where each simple command of the script's outermost level begins, as far as lines tell."""
    start = 0
    continued = False
    for line in code.split("\n"):
        words = line.strip()
        if words and not continued and not _WORDS_ALONE.match(words) and not _ASSIGNMENT.match(words):
            yield start + len(line) - len(line.lstrip())
        continued = words.endswith(("\\", "&&", "||", "|"))
        start += len(line) + 1


def _finding(script: Script, index: int, severity: str, code: str, message: str, suggestion: str) -> Finding:
    return finding(
        script.text, script.origin, script.text.position(index), severity, "masked", code, message, suggestion
    )
