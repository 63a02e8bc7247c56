# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make bench-hardening` reads out of Lynis' report and OpenSCAP's results."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import yaml
from ansible_collections.goldsmith.images.tests.bench import hardening

REASONS = yaml.safe_load(hardening.FINDINGS.read_text(encoding="utf-8"))

# Lines of a report of Lynis 3.1.4.
REPORT = """\
lynis_version=3.1.4
suggestion[]=FILE-6310|To decrease the impact of a full /home file system, place /home on a separate partition|-|-|
warning[]=XXXX-0000|Something that nobody has thought about|-|-|
details[]=KRNL-6000|sysctl|desc:sysctl value;field:kernel.modules_disabled;prefval:1;value:0;|
lynis_tests_done=245
hardening_index=67
"""
CONTENT = """\
<Benchmark xmlns="http://checklists.nist.gov/xccdf/1.2">
  <Profile id="xccdf_org.ssgproject.content_profile_anssi_bp28_minimal">
    <select idref="xccdf_org.ssgproject.content_rule_sysctl_net_ipv4_ip_forward" selected="true"/>
    <select idref="xccdf_org.ssgproject.content_rule_grub2_password" selected="false"/>
    <select idref="xccdf_org.ssgproject.content_rule_file_owner_etc_shadow" selected="true"/>
  </Profile>
</Benchmark>
"""
RESULTS = """\
<TestResult xmlns="http://checklists.nist.gov/xccdf/1.2">
  <rule-result idref="xccdf_org.ssgproject.content_rule_file_owner_etc_shadow"><result>pass</result></rule-result>
  <rule-result idref="xccdf_org.ssgproject.content_rule_accounts_tmout"><result>fail</result></rule-result>
  <rule-result idref="xccdf_org.ssgproject.content_rule_grub2_password"><result>notselected</result></rule-result>
  <score>96.7741</score>
</TestResult>
"""


def test_lynis() -> None:
    found = hardening.read_lynis(REPORT, REASONS)
    assert (found["version"], found["index"], found["tests"]) == ("3.1.4", 67, 245)
    reasons = {finding["id"]: finding["reason"] for finding in found["findings"]}
    assert list(reasons) == ["FILE-6310", "XXXX-0000", "KRNL-6000:kernel.modules_disabled"]
    assert reasons["XXXX-0000"] is None
    assert "load modules later" in reasons["KRNL-6000:kernel.modules_disabled"]


def test_the_tailoring_leaves_out_what_a_node_cannot_follow() -> None:
    text = hardening.tailoring(ET.fromstring(f"<r>{CONTENT}</r>"), "anssi_bp28_minimal", REASONS)
    [profile] = ET.fromstring(text.split("?>", 1)[1]).iter(f"{hardening.XCCDF}Profile")
    left_out = [select.get("idref") for select in profile.iter(f"{hardening.XCCDF}select")]
    assert left_out == ["xccdf_org.ssgproject.content_rule_sysctl_net_ipv4_ip_forward"]
    assert "<!-- pods are routed -->" in text


def test_openscap() -> None:
    found = hardening.read_openscap(f"<r>{RESULTS}</r>", REASONS)
    assert (found["score"], found["counts"]) == (96.8, {"pass": 1, "fail": 1})
    assert [finding["id"] for finding in found["findings"]] == ["accounts_tmout"]


def test_every_reason_is_one() -> None:
    for entries in REASONS.values():
        for entry in entries:
            assert entry["reason"].strip()
            assert set(entry) <= {"match", "reason", "unselect"}
