# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is PRIVATE to the collection. It can have breaking changes at any time.
# Do not use it from other collections or standalone scripts.
"""What does not work in a shell, and what to write instead."""

from __future__ import annotations

import re

#: What shellcheck calls it (SC...): what to write instead, and the pattern that finds its place on a line.
_CONSTRUCTS: dict[str, tuple[str, str]] = {
    "SC3001": ("Write to a named pipe or a file: `cmd >file 2>&1`.", r">\s*>\(|[<>]\("),
    "SC3003": ("printf, as in \"$(printf '\\t')\".", r"\$'"),
    "SC3005": ("`for i in $(seq 0 2)`, or while with i=$((i + 1)).", r"\bfor\s*\(\("),
    "SC3006": ('`[ "$((a > b))" -eq 1 ]`, or a=$((a + 1)).', r"(?<!\$)\(\("),
    "SC3009": ("`$(seq 1 3)`, or the words one by one.", r"\{[^{}]*(?:\.\.|,)[^{}]*\}"),
    "SC3010": ("`[ ... ]` with quoted variables.", r"\[\["),
    "SC3011": ("`printf '%s\\n' \"$text\" | cmd`, or a here-document (<<EOF).", r"<<<"),
    "SC3014": ("One `=`.", r"=="),
    "SC3018": ("i=$((i + 1))", r"\+\+|--"),
    "SC3020": ("`>file 2>&1`.", r"&>"),
    "SC3024": ('text="$text more"', r"\+="),
    "SC3028": ("`$(od -An -N2 -tu2 /dev/urandom)` for RANDOM, `$(hostname)` for HOSTNAME.", r"\$\{?[A-Z]"),
    "SC3029": ("`2>&1 |`.", r"\|&"),
    "SC3030": ('Positional parameters: `set -- a b c`, then "$@".', r"\w+\+?=\("),
    "SC3032": ("A named pipe (mkfifo) and &.", r"\bcoproc\b"),
    "SC3036": ("`printf`.", r"\becho\s+-"),
    "SC3037": ("`printf`.", r"\becho\s+-"),
    "SC3039": ("i=$((i + 1))", r"\blet\b"),
    "SC3040": (
        "`set -e`, and files instead of pipes: this shell ends with 'Illegal option -o pipefail'.",
        r"\bpipefail\b",
    ),
    "SC3043": ("Inside a function it works in dash; anywhere else leave local out.", r"\blocal\b"),
    "SC3044": ("`cd dir` in a subshell: ( cd dir && cmd ).", r"\b(pushd|popd|declare|shopt)\b"),
    "SC3046": ("`. ./file`, with a path.", r"\bsource\b"),
    "SC3053": ("eval, or a case.", r"\$\{!"),
    "SC3054": ('Positional parameters: `set -- a b c`, then "$@".', r"\$\{\w+\["),
    "SC3057": ("`cut -c` or ${text#prefix}.", r"\$\{\w+:\d"),
    "SC3059": ("`tr '[:upper:]' '[:lower:]'`.", r"\$\{\w+[\^,]"),
    "SC3060": ("`$(printf '%s' \"$x\" | sed 's/a/b/g')`.", r"\$\{\w+/"),
    "SC2112": ("`name() {`.", r"\bfunction\b"),
    "SC2113": ("`name() {`.", r"\bfunction\b"),
    "SC2168": ("local works only inside a function: leave it out.", r"\blocal\b"),
}
_USE_BASH = "Or put the code into a script that begins with #!/bin/bash, and run that."
#: Constructs that make dash's parser stumble, in the order in which it is likely that they did.
_UNPARSED = ("SC3011", "SC3001", "SC3005", "SC3029", "SC3030", "SC2113", "SC3006")

#: shellcheck lets these pass or calls them a matter of style; dash ends, or goes on with something wrong.
FATAL_IN_DASH = ("SC3040", "SC2112", "SC2113")


def suggestion(code: str) -> str:
    text, _unused = _CONSTRUCTS.get(code, ("", ""))
    return f"Instead: {text} {_USE_BASH}" if text else ""


def recognise(line: str) -> tuple[int, str] | None:
    """Column and suggestion for a line that dash cannot parse."""
    for code in _UNPARSED:
        text, pattern = _CONSTRUCTS[code]
        match = re.search(pattern, line)
        if match:
            return match.start() + 1, suggestion(code)
    return None
