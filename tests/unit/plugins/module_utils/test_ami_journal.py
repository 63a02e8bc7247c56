# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journal of a copy: what a killed run leaves is read, and only one run writes."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _ami_journal as logic
from ansible_collections.goldsmith.images.plugins.module_utils._ami import AmiError


def test_lines_are_there_for_the_next_run(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "folder" / "a.jsonl"
    with logic.Journal.opened(path, write=True) as journal:
        journal.note("copy", token="t", request={"Name": "x"})
        assert [entry["event"] for entry in logic.read(path)] == ["copy"]  # at once, not at the end
    with logic.Journal.opened(path, write=False) as journal:
        assert journal.of("copy", token="t")[0]["request"] == {"Name": "x"}
        assert journal.of("copy", token="u") == []


def test_a_line_that_a_killed_run_did_not_finish_spoils_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    with logic.Journal.opened(path, write=True) as journal:
        journal.note("copied", image_id="ami-1")
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"event": "copied", "image_')
    with logic.Journal.opened(path, write=True) as journal:
        journal.note("copied", image_id="ami-2")
    assert [entry["image_id"] for entry in logic.read(path)] == ["ami-1", "ami-2"]


def test_only_one_run_writes_and_check_mode_writes_nothing(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    with logic.Journal.opened(path, write=False) as journal:
        journal.note("copy")
    assert not path.exists()
    with logic.Journal.opened(path, write=True):
        with pytest.raises(AmiError, match="another run"), logic.Journal.opened(path, write=True):
            pass
        with logic.Journal.opened(path, write=False):
            pass


def test_shares_that_are_open(tmp_path: pathlib.Path) -> None:
    with logic.Journal.opened(tmp_path / "a.jsonl", write=True) as journal:
        journal.note("share", kind="image", id="ami-1", accounts=["1", "2"])
        journal.note("share", kind="snapshot", id="snap-1", accounts=["1"])
        journal.note("revoked", kind="image", id="ami-1", accounts=["1"])
        journal.note("revoked", kind="snapshot", id="snap-1", accounts=["1"])
        assert journal.open_shares() == {("image", "ami-1"): {"2"}}


def test_an_image_that_is_gone_is_known_by_its_name(tmp_path: pathlib.Path) -> None:
    for number, name in enumerate(("a", "b", "a")):
        with logic.Journal.opened(tmp_path / f"{number}.jsonl", write=True) as journal:
            journal.note("source", region="r", name=name, owner="self", image_id=f"ami-{number}")
    assert logic.known_source(tmp_path, "r", "a", "self") == "ami-2"
    assert logic.known_source(tmp_path, "r", "c", "self") is None
    assert logic.known_source(tmp_path, "r", None, "self") is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AmiError, match="cannot be written"), logic.Journal.opened(tmp_path / "file/a", write=True):
        pass
