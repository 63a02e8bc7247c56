# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-hardening`: what Lynis and OpenSCAP find in a machine, in one run with the same packages installed.

Stages: the base disk as it is, with the role, with the role and the Kubernetes prerequisites, and with the profile
strict in a second machine. Every finding that is left has a reason in hardening_findings.yml; one without is an error.
OpenSCAP's content is Debian 12's, as there is none for 13: its platform check is widened, and nodes have a tailoring
file. Under emulation a stage takes ten minutes and more. Prints JSON, writes it to output/bench-hardening.json, Lynis'
logs beside it, and the table into docs/hardening.md; exit status 1 if a finding has no reason, a proof fails or an
index is not reached.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.goldsmith.images.tests.bench.machine import CHECKOUT, Machine, machine, note

PAGE = CHECKOUT / "docs" / "hardening.md"
FINDINGS = Path(__file__).with_name("hardening_findings.yml")
CONTENT = "/usr/share/xml/scap/ssg/content/ssg-debian12-ds.xml"
XCCDF = "{http://checklists.nist.gov/xccdf/1.2}"
PREFIX = "xccdf_org.ssgproject.content_"
NODE_PROFILE = "xccdf_goldsmith.images_profile_node"
#: Scenario whose machine is used, roles, and the profile of each stage; a machine goes from stage to stage.
STAGES: dict[str, tuple[str, list[str], str]] = {
    "stock": ("hardening", [], ""),
    "kubernetes_node": ("hardening", ["hardening"], "kubernetes_node"),
    "kubernetes_node with Kubernetes": (
        "hardening",
        ["container_runtime", "kubernetes_prerequisites", "hardening"],
        "kubernetes_node",
    ),
    "strict": ("hardening_strict", ["container_runtime", "hardening"], "strict"),
}
#: Lynis' index to reach in a stage.
INDEX = {"kubernetes_node": 85, "kubernetes_node with Kubernetes": 85, "strict": 90}
INSTALL = "apt-get -qq update && apt-get -qq install --no-install-recommends lynis openscap-scanner ssg-debian"
# DNS is that of the first host that apt asks; unattended-upgrades only says what it would do.
PROOFS = """\
host=$(apt-get indextargets --format '$(REPO_URI)' | sed -nE 's|^[a-z]+://([^/:]+).*|\\1|p' | head -1)
getent hosts "$host" >/dev/null && echo dns
apt-get -qq update && unattended-upgrade --dry-run && echo unattended_upgrades
"""


def reason_for(tool: str, name: str, reasons: dict[str, list[dict[str, Any]]]) -> str | None:
    return next((entry["reason"] for entry in reasons[tool] if re.fullmatch(entry["match"], name)), None)


def read_lynis(report: str, reasons: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Findings are warnings and suggestions, and the single settings that these are made of."""
    values = dict(line.split("=", 1) for line in report.splitlines() if "=" in line and "[]=" not in line)
    findings = []
    for kind, line in re.findall(r"^(warning|suggestion|details)\[\]=(.*)$", report, re.MULTILINE):
        fields = line.split("|")
        name, text = fields[0], fields[1]
        if kind == "details":
            detail = dict(part.split(":", 1) for part in fields[2].split(";") if ":" in part)
            name = f"{name}:{detail.get('field', fields[1])}"
            text = f"{detail.get('value', '')}, wanted {detail.get('prefval', '')}"
        findings.append({"id": name, "kind": kind, "text": text, "reason": reason_for("lynis", name, reasons)})
    return {
        "version": values.get("lynis_version"),
        "index": int(values["hardening_index"]),
        "tests": int(values["lynis_tests_done"]),
        "findings": findings,
    }


def measure_lynis(vm: Machine, reasons: dict[str, list[dict[str, Any]]], log: Path) -> dict[str, Any]:
    vm.ssh("sudo lynis audit system --quick --no-colors --cronjob >/dev/null 2>&1", check=False)
    log.parent.mkdir(exist_ok=True)
    log.write_text(vm.ssh("sudo cat /var/log/lynis.log"), encoding="utf-8")
    return read_lynis(vm.ssh("sudo cat /var/log/lynis-report.dat"), reasons)


def tailoring(content: ET.Element, base: str, reasons: dict[str, list[dict[str, Any]]]) -> str:
    """A profile for nodes: the base's without the rules that a node cannot follow, with the reasons as comments."""
    profiles = {found.get("id"): found for found in content.iter(f"{XCCDF}Profile")}
    lines = []
    for select in profiles[f"{PREFIX}profile_{base}"].iter(f"{XCCDF}select"):
        rule = str(select.get("idref"))
        name = rule.removeprefix(f"{PREFIX}rule_")
        entry = next((each for each in reasons["openscap"] if re.fullmatch(each["match"], name)), {})
        if select.get("selected") == "true" and entry.get("unselect"):
            lines.append(f'<xccdf:select idref="{rule}" selected="false"/><!-- {entry["reason"]} -->')
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<xccdf:Tailoring xmlns:xccdf="{XCCDF.strip("{}")}" id="xccdf_goldsmith.images_tailoring_node">
  <xccdf:version time="2026-01-01T00:00:00">1</xccdf:version>
  <xccdf:Profile id="{NODE_PROFILE}" extends="{PREFIX}profile_{base}">
    <xccdf:title>Node of a cluster</xccdf:title>
    {chr(10).join("    " + line for line in lines).strip()}
  </xccdf:Profile>
</xccdf:Tailoring>
"""


def read_openscap(results: str, reasons: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    [result] = ET.fromstring(results).iter(f"{XCCDF}TestResult")
    counts: dict[str, int] = {}
    findings = []
    for rule in result.iter(f"{XCCDF}rule-result"):
        outcome = rule.findtext(f"{XCCDF}result", "")
        if outcome == "notselected":
            continue
        counts[outcome] = counts.get(outcome, 0) + 1
        name = str(rule.get("idref")).removeprefix(f"{PREFIX}rule_")
        if outcome not in ("pass", "notapplicable"):
            findings.append({"id": name, "kind": outcome, "reason": reason_for("openscap", name, reasons)})
    score = result.findtext(f"{XCCDF}score", "0")
    return {"score": round(float(score), 1), "counts": counts, "findings": findings}


def measure_openscap(
    vm: Machine, base: str, node: bool, reasons: dict[str, list[dict[str, Any]]], tailored: Path
) -> dict[str, Any]:
    vm.ssh(f"sudo sh -c \"sed 's/\\^12\\.\\[0-9\\]+\\$/^1[23].[0-9]+$/' {CONTENT} >/root/content.xml\"")
    options = f"--profile {PREFIX}profile_{base}"
    if node:
        content = ET.fromstring(vm.ssh("sudo cat /root/content.xml"))
        tailored.parent.mkdir(exist_ok=True)
        tailored.write_text(tailoring(content, base, reasons), encoding="utf-8")
        vm.ssh("sudo tee /root/node.xml >/dev/null", text=tailored.read_text(encoding="utf-8"))
        options = f"--profile {NODE_PROFILE} --tailoring-file /root/node.xml"
    # It says with its exit code that rules failed, too.
    vm.ssh(f"sudo oscap xccdf eval {options} --results /root/results.xml /root/content.xml", check=False)
    found = read_openscap(vm.ssh("sudo cat /root/results.xml"), reasons)
    return {"profile": base, "tailored": node, **found}


def stage(name: str, vm: Machine, arguments: argparse.Namespace, reasons: dict[str, Any]) -> dict[str, Any]:
    _scenario, roles, profile = STAGES[name]
    proofs: dict[str, bool] = {}
    if roles:
        note(f"{name}: applying {', '.join(roles)}")
        vm.play(roles, hardening_profile=profile, kubernetes_prerequisites_packages_source="distribution")
        login = vm.ssh("echo in", "-o", "ControlMaster=no", "-o", "ControlPath=none")
        words = vm.ssh("sudo sh -s", text=PROOFS, check=False).split()
        proofs = {"second_login": login.strip() == "in", **{k: k in words for k in ("dns", "unattended_upgrades")}}
        checks = ["hardening", *(["container_runtime"] if "container_runtime" in roles else [])]
        proofs["checks"] = vm.checks(checks, {"distribution_release": "trixie", "hardening_profile": profile})
    note(f"{name}: Lynis")
    log = CHECKOUT / f"output/lynis-{name.replace(' ', '-')}.log"
    result: dict[str, Any] = {"proofs": proofs, "lynis": measure_lynis(vm, reasons, log)}
    note(f"{name}: Lynis says {result['lynis']['index']}")
    if not arguments.without_openscap:
        note(f"{name}: OpenSCAP")
        tailored = CHECKOUT / "output/openscap-node-tailoring.xml"
        result["openscap"] = measure_openscap(vm, arguments.content, name != "strict", reasons, tailored)
    return result


def table(stages: dict[str, Any]) -> str:
    """What docs/hardening.md shows."""
    lines = ["| stage | Lynis index | tests | OpenSCAP pass | fail | works |", "|---|---|---|---|---|---|"]
    for name, found in stages.items():
        counts = found.get("openscap", {}).get("counts", {})
        works = ", ".join(key.replace("_", " ") for key, value in found["proofs"].items() if value) or "-"
        lynis = found["lynis"]
        row = [name, lynis["index"], lynis["tests"], counts.get("pass", "-"), counts.get("fail", "-"), works]
        lines.append(f"| {' | '.join(str(cell) for cell in row)} |")
    rows = {}
    for name, found in stages.items():
        if not found["proofs"]:
            continue
        for tool in ("lynis", "openscap"):
            for finding in found.get(tool, {}).get("findings", []):
                key = (tool, finding["id"], finding["reason"] or "**none**")
                rows.setdefault(key, []).append(name)
    lines += ["", "| left by the role | in | reason |", "|---|---|---|"]
    lines += [f"| `{rule}` | {', '.join(dict.fromkeys(names))} | {why} |" for (_t, rule, why), names in rows.items()]
    return "\n".join(lines)


def main(arguments: argparse.Namespace) -> None:
    reasons = yaml.safe_load(FINDINGS.read_text(encoding="utf-8"))
    stages: dict[str, Any] = {}
    output = CHECKOUT / "output/bench-hardening.json"
    output.parent.mkdir(exist_ok=True)
    wanted = [name for name in STAGES if not arguments.stage or name in arguments.stage]
    for scenario in dict.fromkeys(STAGES[name][0] for name in wanted):
        with machine(scenario) as vm:
            note(f"{scenario}: installing Lynis and OpenSCAP")
            vm.ssh(f"sudo sh -c '{INSTALL}'")
            for name in (each for each in wanted if STAGES[each][0] == scenario):
                stages[name] = stage(name, vm, arguments, reasons)
                output.write_text(json.dumps({"stages": stages}, indent=2) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    marks = r"(<!-- bench-hardening -->\n).*?(<!-- /bench-hardening -->)"
    PAGE.write_text(
        re.sub(marks, lambda match: f"{match[1]}{table(stages)}\n{match[2]}", text, flags=re.DOTALL), encoding="utf-8"
    )
    print(output.read_text(encoding="utf-8"))
    left = [
        f"{name}: {finding['id']}"
        for name, found in stages.items()
        if found["proofs"]
        for tool in ("lynis", "openscap")
        for finding in found.get(tool, {}).get("findings", [])
        if not finding["reason"]
    ]
    broken = [f"{name}: {key}" for name, found in stages.items() for key, works in found["proofs"].items() if not works]
    missed = [
        f"{name}: Lynis {found['lynis']['index']}, to reach {INDEX[name]}"
        for name, found in stages.items()
        if found["lynis"]["index"] < INDEX.get(name, 0)
    ]
    for title, names in (("findings without a reason", left), ("broken", broken), ("missed", missed)):
        if names:
            print(f"bench: {title}: {', '.join(names)}", file=sys.stderr)
    if left or broken or missed:
        sys.exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench-hardening", description=__doc__)
    parser.add_argument("--stage", action="append", choices=STAGES, help="only this one, or these")
    parser.add_argument("--content", default="anssi_bp28_intermediary", help="profile of OpenSCAP's content")
    parser.add_argument("--without-openscap", action="store_true")
    main(parser.parse_args())
