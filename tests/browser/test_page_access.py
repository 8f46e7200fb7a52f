"""The studio's page for keyboards, screen readers, and every size of screen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from processes import ROOT
from studio_page import WIDTHS, Page

CONTROLS = {
    *("button", "link", "textbox", "searchbox", "combobox", "spinbutton", "slider", "radio", "checkbox"),
    *("DisclosureTriangle", "progressbar", "dialog", "Video", "image", "form", "region"),
}
CONTRAST = """
const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (color) => {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
const linear = (value) => (value <= 0.04045 * 255 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const background = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    layers.push(rgba(getComputedStyle(at).backgroundColor));
    if (layers.at(-1)[3] === 1) break;
  }
  return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const texts = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
  const text = texts.map((node) => node.data).join(" ").trim();
  const value = element.matches("input:not([type=range], [type=radio], [type=file]), textarea, select");
  if (!(text || value) || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
  // Texts over videos have a dark ground of their own; disabled controls are exempt (WCAG 1.4.3).
  if (element.closest(".card-length, .pick, .visually-hidden, .skip, option, :disabled")) continue;
  const ground = background(element);
  const color = over(rgba(getComputedStyle(element).color), ground);
  const [light, dark] = [luminance(color), luminance(ground)].sort((a, b) => b - a);
  const ratio = (light + 0.05) / (dark + 0.05);
  if (ratio < 4.5) found.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)} ${text.slice(0, 40)}`);
}
return found;
"""
OVERFLOW = """
return [...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  const hidden = element.closest(".visually-hidden, .skip, .chips, dialog") || !element.checkVisibility();
  return !hidden && box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map((element) => element.outerHTML.slice(0, 100));
"""


@pytest.fixture
def filled(page, service) -> Page:
    """With some videos, one that was cancelled, and the newest one in the player."""
    if not service.http.get("/v1/videos", params={"query": "green square turns"}).json()["data"]:
        colors = ("red circle moves right", "green square turns", "blue star grows", "white triangle moves down")
        for color in colors:
            made = service.create(f"a {color} on a black background", steps=4)["id"]
        service.wait_for(made)
        cancelled = service.create("a cancelled one", steps=200)["id"]
        service.http.post(f"/v1/videos/{cancelled}/cancel", json={})
        page.driver.refresh()
        page.ready()
    newest = service.http.get("/v1/videos", params={"status": "completed"}).json()["data"][0]["id"]
    page.click(f'.tile[data-id="{newest}"] a')
    page.wait_for_video(newest)
    return page


def nameless(page: Page) -> list[str]:
    """The controls without an accessible name, as the browser computes it for screen readers."""
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in CONTROLS]
    assert len(shown) > 30
    return [str(node) for node in shown if not node.get("name", {}).get("value", "").strip()]


def press(page: Page, *keys: str) -> None:
    page.driver.switch_to.active_element.send_keys("".join(keys))


def focused(page: Page, selector: str) -> bool:
    return page.run("return document.activeElement.matches(arguments[0])", selector)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_names_contrast_and_landmarks(filled, dark):
    filled.resize(*WIDTHS["desktop"], dark=dark)
    filled.click("#advanced summary")
    filled.click("#stage .details summary")
    filled.run(
        "document.getElementById('form-error').hidden = false; document.getElementById('form-error').textContent = 'x'"
    )
    assert not nameless(filled)
    assert not filled.run(CONTRAST)
    ids = filled.run("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(set(ids)) == len(ids)
    assert filled.run("return document.documentElement.lang") == "en"
    for landmark in ("header", "main", "main form[aria-label]", "[role=search]", "[aria-live=polite]"):
        assert filled.elements(landmark)
    press(filled, "?")
    filled.wait(lambda: filled.is_shown("dialog"), "the shortcuts")
    assert not filled.run(CONTRAST)


def test_keyboard(filled):
    from selenium.webdriver.common.keys import Keys

    page = filled
    page.run("document.activeElement.blur()")
    press(page, "/")
    assert focused(page, "#search")
    page.element("#search").send_keys("green square turns", Keys.ENTER)
    page.wait(lambda: len(page.elements(".tile")) == 1, "the search")
    page.element("#search").send_keys(Keys.ESCAPE)
    page.wait(lambda: len(page.elements(".tile")) >= 4, "all videos")
    page.element("#search").send_keys(Keys.TAB)
    press(page, Keys.TAB)
    assert focused(page, ".tile a")
    first = page.run("return document.activeElement.closest('.tile').dataset.id")
    press(page, Keys.ARROW_RIGHT)
    second = page.run("return document.activeElement.closest('.tile').dataset.id")
    assert second != first
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(page, Keys.ENTER)
    page.wait(lambda: page.selected() == second, "the video")
    press(page, "c")
    page.wait(lambda: page.is_shown("#compare-bar"), "the comparison's bar")
    press(page, Keys.ESCAPE)
    page.wait(lambda: not page.is_shown("#compare-bar"), "its end")
    press(page, "?")
    page.wait(lambda: page.is_shown("dialog"), "the shortcuts")
    assert page.run("return document.activeElement.closest('dialog') !== null")
    press(page, Keys.ESCAPE)
    page.wait(lambda: not page.elements("dialog"), "its end")
    assert page.run("return document.activeElement.closest('.tile')?.dataset.id") == second
    page.element("#prompt").send_keys("asked with keys / and ?")
    page.fill("#steps", 3)
    made = page.generate(lambda: page.element("#prompt").send_keys(Keys.CONTROL, Keys.ENTER))
    page.wait_for_video(made)
    page.wait(lambda: "Finished: asked with keys" in page.text("#live"), "the announcement")


def test_delete_asks_and_moves_the_focus(filled):
    gone = filled.selected()
    filled.click_text("Delete", "#stage")
    assert filled.driver.switch_to.active_element.text == "Keep it"
    filled.click_text("Delete", "dialog")
    filled.wait(lambda: filled.selected() not in ("", gone) and not filled.elements("dialog"), "the next video")
    assert focused(filled, "#stage")


def test_theme_is_remembered(page, service):
    background = "return getComputedStyle(document.body.parentElement).backgroundColor"
    system = page.run(background)
    page.click("#theme")
    page.click("#theme")
    assert page.element("#theme").get_attribute("aria-label") == "Theme: dark"
    dark = page.run(background)
    assert dark != system
    page.open(fresh=False).ready()
    assert page.run(background) == dark
    page.click("#theme")
    page.resize(*WIDTHS["desktop"], dark=True)
    assert page.run(background) == dark


def test_less_motion(page):
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    moving = "return document.getAnimations().filter((animation) => animation.playState === 'running').length"
    assert page.run(moving) == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_cut_off(filled, tmp_path, width, dark):
    """Screenshots go to the folder OPENSORA_SCREENSHOTS, to be looked at."""
    filled.resize(*WIDTHS[width], dark=dark)
    assert not filled.run(OVERFLOW)
    assert filled.run("return document.documentElement.scrollWidth") <= WIDTHS[width][0]
    folder = Path(os.environ.get("OPENSORA_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"studio-{width}-{'dark' if dark else 'light'}.png"
    assert filled.driver.save_screenshot(str(path)) and path.stat().st_size > 10000


def test_all_modules_are_fetched_at_once():
    """Without the list in the page, a browser finds a module only when it has read the one that imports it."""
    folder = ROOT / "opensora/serve/page"
    text = (folder / "index.html").read_text()
    assert [path.name for path in folder.glob("*.js") if f'"page/{path.name}"' not in text] == []
    assert [path.name for path in folder.glob("*.css") if f'"page/{path.name}"' not in text] == []
