"""Shared by all tests: in CI a gate test that was skipped fails the run."""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and item.get_closest_marker("gate"):
        report.outcome = "failed"
        report.longrepr = f"gate test skipped in CI: {report.longrepr}"
