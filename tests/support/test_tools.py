"""Missing tools are named by the package that brings them."""

from __future__ import annotations

import pytest

from tests.support.tools import find, missing_packages

pytest_plugins = ["pytester"]


def test_a_missing_tool_is_named_by_its_package() -> None:
    assert missing_packages(["no-such-tool", "sh"]) == ["no-such-tool"]
    assert missing_packages([]) == []


def test_looking_for_a_missing_tool_says_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-tool is not installed"):
        find("no-such-tool")


def test_a_test_without_its_tool_is_skipped_with_the_reason(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import pytest_addoption, pytest_runtest_setup")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.tool("no-such-tool")
        def test_that_needs_it():
            raise AssertionError

        def test_that_does_not():
            pass
        """
    )
    result = pytester.runpytest_inprocess("-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*not installed: no-such-tool"])
