# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image and its evidence take their places together."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _image_release
from ansible_collections.goldsmith.images.plugins.module_utils._command import Interrupted, interruptible

NAMES = ("mine.qcow2", "junit.xml", "SHA256SUMS", "manifest.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_amid_the_renames_takes_effect_after_the_last(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, work = tmp_path / "output", tmp_path / "work"
    for folder in (output, work):
        folder.mkdir()
        for name in NAMES:
            (folder / name).write_text(folder.name)
    replace = os.replace

    def replace_and_interrupt(source: Path, target: Path) -> None:
        replace(source, target)
        os.kill(os.getpid(), number)

    # A signal to a process goes to any of its threads that takes it.
    ended = threading.Event()
    threading.Thread(target=ended.wait, daemon=True).start()
    monkeypatch.setattr(os, "replace", replace_and_interrupt)
    with pytest.raises(Interrupted), interruptible():
        _image_release.put_in_place({name: work / name for name in NAMES}, output)
    ended.set()
    assert {name: (output / name).read_text() for name in NAMES} == dict.fromkeys(NAMES, "work")
    assert not list(work.iterdir())
