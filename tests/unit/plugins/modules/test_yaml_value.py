# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.modules.yaml_value import KeyPathError, edit

CONFIG = """\
# Settings of the deployment
---
aws:   # the account of the lab
  region: 'eu-west-1'
  cml_ami: "ami-old"   # replaced by the pipeline
  subnets:
    - one
    - two   # second

app: &defaults {b: 1, c: [1, 2]}
other: *defaults
secret: !vault |
  $ANSIBLE_VAULT;1.1;AES256
  6162
words: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb cccccccccccccccccccccccc dddddd
enabled: false
"""


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    assert len(old) == len(new)
    return [(a, b) for a, b in zip(old, new, strict=True) if a != b]


@pytest.mark.parametrize(
    ("key", "value", "before", "line"),
    [
        ("aws.cml_ami", "ami-new", "ami-old", '  cml_ami: "ami-new"   # replaced by the pipeline\n'),
        ("aws.region", "us-east-1", "eu-west-1", "  region: 'us-east-1'\n"),
        ("enabled", True, False, "enabled: true\n"),
        ("app.c.1", 5, 2, "app: &defaults {b: 1, c: [1, 5]}\n"),
    ],
)
def test_one_line_changes(key: str, value: Any, before: Any, line: str):
    after, found = edit(CONFIG, key, value)
    assert found == before
    assert [new for _old, new in changed_lines(CONFIG, after)] == [line]
    assert edit(after, key, value) == (after, value)


def test_lines_end_as_they_did():
    windows = "a: 1\r\nb:\r\n- x\r\n"
    assert edit(windows, "a", 2) == ("a: 2\r\nb:\r\n- x\r\n", 1)


def test_a_new_key_is_added():
    assert edit("aws:\n  region: x\n", "aws.cml_ami", "ami-1") == ("aws:\n  region: x\n  cml_ami: ami-1\n", None)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("azure.image", "the document has no key 'azure'; it has: aws, app"),
        ("aws.subnets.2", "aws.subnets is a list of 2 items and has no item '2'"),
        ("aws.subnets.x", "has no item 'x'"),
        ("aws.region.x", "aws.region is 'eu-west-1', so it has no key 'x'"),
    ],
)
def test_a_way_that_leads_nowhere_is_explained(key: str, message: str):
    with pytest.raises(KeyPathError, match=message):
        edit(CONFIG, key, "x")
