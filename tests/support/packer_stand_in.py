# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that stands in for a version of Packer that is not installed.

It takes the options that this version knows and no others, and answers with a stream and an exit code that it was
given. The options are those of command/*.go at the versions' tags; a test holds those of 1.6.6 against the real one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Version = tuple[int, ...]

ALWAYS: Version = (1, 6, 6)
TEMPLATE_OPTIONS = {"-only": ALWAYS, "-except": ALWAYS, "-var": ALWAYS, "-var-file": ALWAYS, "-config-type": ALWAYS}
COMMANDS: dict[str, Version] = {
    "version": ALWAYS,
    "validate": ALWAYS,
    "build": ALWAYS,
    "inspect": ALWAYS,
    "init": (1, 7),
}
# The first version that knows an option.
OPTIONS: dict[str, dict[str, Version]] = {
    "version": {},
    "build": {
        **TEMPLATE_OPTIONS,
        "-color": ALWAYS,
        "-debug": ALWAYS,
        "-force": ALWAYS,
        "-timestamp-ui": ALWAYS,
        "-parallel-builds": ALWAYS,
        "-on-error": ALWAYS,
        "-warn-on-undeclared-var": (1, 9, 0),
        "-ignore-prerelease-plugins": (1, 11, 0),
        "-use-sequential-evaluation": (1, 12, 0),
        "-skip-enforcement": (1, 16, 0),
    },
    "validate": {
        **TEMPLATE_OPTIONS,
        "-syntax-only": ALWAYS,
        "-no-warn-undeclared-var": (1, 9, 0),
        "-evaluate-datasources": (1, 9, 0),
        "-ignore-prerelease-plugins": (1, 11, 0),
        "-use-sequential-evaluation": (1, 12, 0),
    },
    "inspect": {**TEMPLATE_OPTIONS, "-use-sequential-evaluation": (1, 12, 0)},
    "init": {"-upgrade": (1, 7, 0), "-force": (1, 10, 0), **TEMPLATE_OPTIONS},
}
# A value that the option takes.
VALUES = {
    "-only": "x",
    "-except": "x",
    "-var": "a=b",
    "-var-file": "x.json",
    "-on-error": "abort",
    "-parallel-builds": "1",
    "-color": "false",
    "-config-type": "hcl2",
}


def make(directory: Path, version: str, **answers: dict[str, Any]) -> Path:
    """The program as an executable file. An answer to a command has "text" (what it prints) and "rc".

    The answer to "validate_before_init" is for the time before the plugins have been installed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "answers.json").write_text(json.dumps({"version": version, **answers}))
    program = directory / "packer"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {__file__} "{directory}" "$@"\n')
    program.chmod(0o755)
    return program


def calls(directory: Path) -> list[list[str]]:
    """The command lines with which the program was called."""
    log = directory / "calls"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def main(directory: Path, arguments: list[str]) -> int:
    with (directory / "calls").open("a") as log:
        log.write(json.dumps(arguments) + "\n")
    answers = json.loads((directory / "answers.json").read_text())
    version = tuple(map(int, answers["version"].split(".")))
    # All versions strip this one before anything else, in this spelling only.
    command, *rest = [item for item in arguments if item != "-machine-readable"]
    if version < COMMANDS.get(command, (99,)):
        print("Usage: packer [--version] [--help] <command> [<args>]")
        return 127
    if command == "version":
        print(f"Packer v{answers['version']}")
        return 0
    while rest and rest[0].startswith("-"):
        option = rest.pop(0).partition("=")[0]
        if version < OPTIONS[command].get(option, (99,)):
            print(f"1,,ui,say,Usage: packer {command} [options] TEMPLATE")
            print(f"1,,ui,error,flag provided but not defined: {option}")
            return 1
    if len(rest) != 1:
        print(f"1,,ui,say,Usage: packer {command} [options] TEMPLATE")
        return 1
    if command == "init":
        (directory / "initialised").touch()
    if f"{command}_before_init" in answers and not (directory / "initialised").exists():
        command += "_before_init"
    answer = answers.get(command, {})
    sys.stdout.write(answer.get("text", ""))
    return answer.get("rc", 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
