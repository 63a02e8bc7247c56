# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

from ansible_collections.goldsmith.images.tests.support import documented

CONFIG = "aws:\n  region: eu-west-1\n  cml_ami: ami-0fedcba9876543210  # the pipeline changes it\n"


def test_examples(run_module, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text(CONFIG)
    [task] = documented.section("yaml_value", "EXAMPLES")
    params = {**task["goldsmith.images.yaml_value"], "path": str(config)}
    for check, changed, before in (
        (True, True, "ami-0fedcba9876543210"),
        (False, True, "ami-0fedcba9876543210"),
        (False, False, "ami-0123456789abcdef0"),
    ):
        result = run_module("yaml_value", _check=check, **params)
        documented.check_returned("yaml_value", result)
        assert (result["changed"], result["before"]) == (changed, before)
        assert (config.read_text() == CONFIG) == check
    assert config.read_text() == CONFIG.replace("ami-0fedcba9876543210", "ami-0123456789abcdef0")


def test_a_file_that_is_not_there(run_module, tmp_path: Path) -> None:
    result = run_module("yaml_value", path=str(tmp_path / "none.yml"), key="a", value="b")
    assert result["failed"] and "No such file" in result["msg"]
