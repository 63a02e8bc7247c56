# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cml_gui_check against a real nginx with TLS and a stand-in controller behind it; nothing leaves loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from ansible_collections.goldsmith.images.tests.support.cml_controller import PAGE, Site, serve

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with serve(tmp_path_factory.mktemp("cml"), NGINX) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Site:
    running.controller.reset()
    running.page.write_text(PAGE, encoding="utf-8")
    return running
