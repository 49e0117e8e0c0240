"""What is read of libFuzzer's words, and what a Python without atheris is told."""

from __future__ import annotations

import pytest

from tests.fuzz import __main__ as runner
from tests.fuzz.run import FINDINGS, outcome

QUIET = """INFO: Running with entropic power schedule (0xFF, 100).
#82	INITED cov: 409 ft: 681 corp: 64/4563b exec/s: 0 rss: 65Mb
#95	NEW    cov: 411 ft: 685 corp: 65/4570b lim: 349 exec/s: 0 rss: 65Mb L: 7/349 MS: 1 EraseBytes-
#20740	DONE   cov: 431 ft: 902 corp: 99/6563b lim: 549 exec/s: 1296 rss: 65Mb
stat::number_of_executed_units: 20740
stat::average_exec_per_sec:     1296
stat::peak_rss_mb:              66
"""


def test_a_run_that_finds_nothing() -> None:
    line = " ".join(str(outcome("link", QUIET, 0)).split())
    assert line == "link 20740 inputs 1296/s coverage 409 + 22 66 MiB nothing found"


def test_what_is_found_is_told_with_how_to_see_it_again() -> None:
    log = QUIET + "artifact_prefix='/f/'; Test unit written to /f/crash-0123\nBase64: QQ==\n"
    found = outcome("link", log, 77).found
    assert found.endswith("-m tests.fuzz.child link -timeout=10 -rss_limit_mb=256 /f/crash-0123")


def test_a_target_that_cannot_run_is_no_success() -> None:
    found = outcome("link", "ModuleNotFoundError: No module named 'lz4'\n", 1).found
    assert found == f"FAILED with status 1: see {FINDINGS}/link/log"


def test_without_atheris_it_is_said_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz"])
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    assert runner.main() == 1
    assert "atheris, which is made for CPython 3.11 to 3.14" in capsys.readouterr().err
