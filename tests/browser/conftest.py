"""Fixtures of the tests in a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from studio_page import Page, browser, demo_service
from studio_runs import RunningStudio


@pytest.fixture(scope="session")
def driver() -> Iterator:
    with browser() as running:
        yield running


@pytest.fixture(scope="session")
def service(driver, tmp_path_factory) -> Iterator[RunningStudio]:
    """The service with the demo model; `driver` first, so that nothing is started where the tests are skipped."""
    with demo_service(tmp_path_factory.mktemp("studio") / "data") as running:
        yield running


@pytest.fixture
def page(driver, service) -> Page:
    """The page in a single tab, without anything remembered."""
    for handle in driver.window_handles[1:]:
        driver.switch_to.window(handle)
        driver.close()
    driver.switch_to.window(driver.window_handles[0])
    page = Page(driver, service.address).open().ready()
    page.problems()
    return page
