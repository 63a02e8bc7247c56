# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merge the JUnit files of several rounds of checks into one and say what they found.

Usage: summarise.py MERGED ROUNDS CHECKS
ROUNDS is a JSON list of {"name", "rc", "junit", "output"}, CHECKS one of the test modules that must have run.
Prints a JSON object: tests, failures, skipped, failed (list of {test, message}), problems (list of sentences).
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

# What pytest's exit code says; 0 and 1 (tests failed) are told by the JUnit file itself.
EXIT_CODES = {
    2: "was interrupted, or a check could not be imported",
    3: "ended with an internal error",
    4: "was started wrongly",
    5: "found no test",
    124: "did not end within verify_image_timeout",
    137: "did not end within verify_image_timeout and had to be killed",
}


def module_of(case: ET.Element) -> str:
    """Return the test module of a test case ("test_base" of "test_base.TestUsers")."""
    # A module that could not be imported has no class name: the test is the module.
    return (case.get("classname") or case.get("name") or "").split(".")[0]


def summarise(merged: Path, rounds: list[dict[str, Any]], checks: list[str]) -> dict[str, Any]:
    root = ET.Element("testsuites", name="verify_image")
    result: dict[str, Any] = {"tests": 0, "failures": 0, "skipped": 0, "failed": [], "problems": []}
    ran: set[str] = set()
    for entry in rounds:
        problem = "" if entry["rc"] in (0, 1) else EXIT_CODES.get(entry["rc"], f"ended with exit code {entry['rc']}")
        suites = []
        try:
            suites = list(ET.parse(entry["junit"]).getroot().iter("testsuite"))
        except (OSError, ET.ParseError) as exc:
            problem = problem or f"left no readable JUnit file ({exc})"
        failed_before = len(result["failed"])
        for suite in suites:
            root.append(suite)
            for case in suite.iter("testcase"):
                _count(case, entry["name"], result, ran)
        if entry["rc"] == 1 and len(result["failed"]) == failed_before:
            problem = problem or "failed, but its JUnit file holds no failure"
        if problem:
            result["problems"].append(f"the round '{entry['name']}' {problem}:\n{entry.get('output', '')}")
    if rounds:
        # A check that was asked for and looked at nothing must not pass for a check that found nothing wrong.
        result["problems"].extend(f"no test of {name} was run" for name in checks if name not in ran)
    for name in ("tests", "failures", "skipped"):
        root.set(name, str(result[name]))
    ET.ElementTree(root).write(merged, encoding="utf-8", xml_declaration=True)
    return result


def _count(case: ET.Element, round_name: str, result: dict[str, Any], ran: set[str]) -> None:
    result["tests"] += 1
    if case.find("skipped") is not None:
        result["skipped"] += 1
        return
    ran.add(module_of(case))
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            result["failures"] += 1
            message = (found.get("message") or found.text or "").strip()
            test = f"{module_of(case)}::{case.get('name')} ({round_name})"
            result["failed"].append({"test": test, "message": message.split("\nassert ")[0][:600]})
            return


def main() -> None:
    merged, rounds, checks = sys.argv[1:]
    json.dump(summarise(Path(merged), json.loads(rounds), json.loads(checks)), sys.stdout)


if __name__ == "__main__":
    main()
