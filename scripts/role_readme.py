# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the variable table of each role's README from its meta/argument_specs.yml.

The table stands between ``<!-- argument_specs -->`` and ``<!-- /argument_specs -->``; the rest of a README is written
by hand. With ``--check`` nothing is written: the stale files are named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- argument_specs -->", "<!-- /argument_specs -->"
HEADING = ("| Variable | Type | Default | What it does |", "|---|---|---|---|")


class ReadmeError(Exception):
    """A README or a specification that the table cannot be written from."""


def markup_to_markdown(text: str) -> str:
    """Ansible's semantic markup (``C(x)``, ``O(x=y)``, ``M(ns.name.module)``) as Markdown."""
    text = re.sub(r"\b[CVEP]\(((?:[^()\\]|\\.)*)\)", lambda m: f"`{m[1]}`", text)
    text = re.sub(r"\b(?:O|RV|M)\(((?:[^()\\]|\\.)*)\)", lambda m: f"`{m[1]}`", text)
    text = re.sub(r"\bB\(([^()]*)\)", r"**\1**", text)
    text = re.sub(r"\bI\(([^()]*)\)", r"*\1*", text)
    text = re.sub(r"\bU\(([^()]*)\)", r"<\1>", text)
    return re.sub(r"\bL\(([^(),]*), *([^()]*)\)", r"[\1](\2)", text)


def cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def option_type(option: dict[str, Any]) -> str:
    kind = option.get("type", "str")
    return f"{kind} of {option['elements']}" if "elements" in option else kind


def option_default(option: dict[str, Any]) -> str:
    if option.get("required"):
        return "**required**"
    if "default" not in option:
        return ""
    return f"`{json.dumps(option['default'], ensure_ascii=False)}`"


def rows(options: dict[str, dict[str, Any]], prefix: str = "") -> list[str]:
    result = []
    for name, option in options.items():
        description = option.get("description", "")
        if isinstance(description, list):
            description = " ".join(description)
        if option.get("choices"):
            description += " One of " + ", ".join(f"C({choice})" for choice in option["choices"]) + "."
        columns = (
            f"`{prefix}{name}`",
            option_type(option),
            option_default(option),
            markup_to_markdown(description),
        )
        result.append("| " + " | ".join(cell(column) for column in columns) + " |")
        result += rows(option.get("options") or {}, f"{prefix}{name}{'[].' if option.get('type') == 'list' else '.'}")
    return result


def table(specs: dict[str, Any]) -> str:
    """The Markdown for all entry points; only those beside `main` get a title."""
    parts = []
    for entry_point, spec in specs["argument_specs"].items():
        if entry_point != "main":
            parts.append(
                f"### Entry point `{entry_point}`\n\n{markup_to_markdown(spec.get('short_description', ''))}".strip()
            )
        options = spec.get("options") or {}
        if options:
            parts.append(
                "\n".join(["| Variable | Type | Default | What it does |", "|---|---|---|---|", *rows(options)])
            )
        else:
            parts.append("There are no variables.")
    return "\n\n".join(parts)


def rendered(role: Path) -> str:
    """The whole README as it should be."""
    readme, specs = role / "README.md", role / "meta" / "argument_specs.yml"
    for path in (readme, specs):
        if not path.is_file():
            raise ReadmeError(f"{path.relative_to(role.parents[1])} is missing")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ReadmeError(f"roles/{role.name}/README.md: wants one line {BEGIN} and after it one line {END}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table(yaml.safe_load(specs.read_text(encoding='utf-8')))}\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a README is stale")
    parser.add_argument("roles", nargs="*", help="names of roles (default: all)")
    options = parser.parse_args(arguments)
    names = options.roles or sorted(path.name for path in (CHECKOUT / "roles").glob("*") if path.is_dir())
    failed = False
    for name in names:
        readme = CHECKOUT / "roles" / name / "README.md"
        try:
            wanted = rendered(CHECKOUT / "roles" / name)
        except (ReadmeError, yaml.YAMLError) as error:
            print(f"role {name}: {error}", file=sys.stderr)
            failed = True
            continue
        if wanted == readme.read_text(encoding="utf-8"):
            continue
        if options.check:
            print(f"roles/{name}/README.md is stale: run `make readme`", file=sys.stderr)
            failed = True
        else:
            readme.write_text(wanted, encoding="utf-8")
            print(f"roles/{name}/README.md written")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
