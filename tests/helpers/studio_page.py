"""The studio's page in a real browser, Chromium without a window."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from processes import ROOT
from studio_runs import RunningStudio

SERVE = ("-m", "opensora.cli", "serve")  # with the demo model
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = {"desktop": (1440, 900), "tablet": (900, 1100), "phone": (390, 844)}
FEW_STEPS, MANY_STEPS = 3, 150  # a video at once, and one that is caught while it is made
# A file that is dropped: the events that a browser sends, with a real File.
DROP = """
const [name, type, content] = arguments;
const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], name, { type }));
for (const kind of ["dragenter", "dragover", "drop"]) {
  const event = new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: carried });
  document.getElementById("drop").dispatchEvent(event);
}
"""


@contextmanager
def browser() -> Iterator[Any]:
    """A selenium driver. The test is skipped where there is no Chromium."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install selenium")
    binary, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        yield running
    finally:
        running.quit()


class Page:
    """The page of a service in the current tab of a driver."""

    def __init__(self, driver: Any, address: str):
        self.driver, self.address = driver, address
        self.resize(*WIDTHS["desktop"])

    def open(self, path: str = "/", fresh: bool = True) -> Page:
        """Opens the page; a `fresh` one has nothing stored from an earlier visit."""
        self.driver.get(self.address + path)
        if fresh:
            self.run("sessionStorage.clear(); localStorage.clear(); window.name = 'left'")
            self.driver.get("about:blank")  # a change of the fragment alone would not load the page
            self.driver.get(self.address + path)
        return self

    def ready(self) -> Page:
        """Waits until it is connected and its form is filled."""
        self.wait(lambda: self.element("#size").get_attribute("value"), "the choices of the form")
        self.wait(lambda: self.text("#service-state") not in ("", "Not connected"), "the connection")
        return self

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        """The first true value of `condition`. Elements that the page replaces meanwhile are looked up again."""
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        deadline = time.monotonic() + seconds
        while True:
            try:
                found = condition()
            except (NoSuchElementException, StaleElementReferenceException):
                found = None
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}; the page shows: {self.text('body')!r:.2000}")
            time.sleep(0.05)

    def element(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def elements(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        """The text of an element as the page has it, also where it is scrolled out of view."""
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector).strip()

    def is_shown(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.elements(selector))

    def click(self, selector: str) -> None:
        element = self.wait(lambda: self.element(selector), selector)
        self.run("arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", element)
        element.click()

    def click_text(self, text: str, within: str = "body") -> None:
        """Clicks the button or link with a text."""
        for element in self.elements(f"{within} :is(button, a, summary)"):
            if element.text.strip() == text:
                self.run("arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", element)
                element.click()
                return
        raise AssertionError(f"there is no {text!r}; the page shows: {self.text(within)!r:.2000}")

    def fill(self, selector: str, value: Any) -> None:
        """Replaces the value of a field, as typing does."""
        element = self.element(selector)
        element.clear()
        element.send_keys(str(value))

    def ask(self, prompt: str, steps: int = FEW_STEPS) -> str:
        """Fills the form for a video and generates it; returns its id when the player has it."""
        self.fill("#prompt", prompt)
        self.fill("#steps", steps)
        return self.generate()

    def generate(self, click: Optional[Callable[[], None]] = None) -> str:
        """Clicks Generate, or what else makes a video; returns its id when the player has it."""
        before = self.selected()
        (click or (lambda: self.click("#generate")))()
        return self.wait(lambda: (now := self.selected()) != before and now, "another job")

    def selected(self) -> str:
        """The id of the video in the player."""
        return self.run("return location.hash.slice(1)")

    def wait_for_video(self, video_id: str, seconds: float = 60.0) -> None:
        """Waits until the player plays a video: its time moves, and it has a size."""
        self.wait(lambda: self.elements(f'#stage video[src*="{video_id}"]'), "the video", seconds)
        script = "const v = document.querySelector('#stage video'); return [v.currentTime, v.videoWidth, v.paused]"
        first = self.run(script)[0]
        now, width, paused = self.wait(lambda: (state := self.run(script))[0] not in (0, first) and state, "it to play")
        assert now > 0 and width > 0 and not paused

    def drop(self, path: Path, kind: str, name: Optional[str] = None) -> None:
        self.run(DROP, name or path.name, kind, base64.b64encode(path.read_bytes()).decode())

    def problems(self) -> list[str]:
        """What the browser's console has complained about since the last call, but for failed requests."""
        log = self.driver.get_log("browser")
        return [
            line["message"] for line in log if line["level"] == "SEVERE" and "Failed to load" not in line["message"]
        ]


@contextmanager
def demo_service(data: Path, *flags: str, **settings: Any) -> Iterator[RunningStudio]:
    """The real service with the demo model; workers start while the page is opened."""
    running = RunningStudio(data, "--rate_limit", "0", "--preview_interval", "0.2", *flags, program=SERVE, **settings)
    try:
        yield running.wait_until_up()
    finally:
        running.stop()


IMAGE = ROOT / "examples/demo_model/picture.png"
