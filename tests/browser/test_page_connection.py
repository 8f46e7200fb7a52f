"""The studio's page when the service is away, full, or wants a token."""

from __future__ import annotations

import pytest
from studio_page import IMAGE, MANY_STEPS, Page, demo_service

PROMPT = "a yellow star turns on a purple background"
TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def strict_service(driver, tmp_path_factory):
    """With a token, a short queue and small uploads."""
    data = tmp_path_factory.mktemp("strict") / "data"
    with demo_service(data, "--max_queue", "1", "--max_upload_mb", "1", OPENSORA_TOKEN=TOKEN) as running:
        running.http.headers["Authorization"] = f"Bearer {TOKEN}"
        yield running


@pytest.fixture
def strict_page(driver, strict_service):
    """The page of the strict service, signed in."""
    page = Page(driver, strict_service.address)
    page.driver.delete_all_cookies()
    page.open()
    page.wait(lambda: page.is_shown("#token"), "the question for the token")
    page.element("#token").send_keys(TOKEN)
    page.click("dialog [type=submit]")
    return page.ready()


def test_token_is_asked_for(driver, strict_service):
    page = Page(driver, strict_service.address)
    page.driver.delete_all_cookies()
    page.open()
    page.wait(lambda: page.is_shown("#token"), "the question for the token")
    assert page.run("return document.activeElement.id") == "token"
    page.element("#token").send_keys("wrong")
    page.click("dialog [type=submit]")
    page.wait(lambda: "not the token" in page.text("#token-error"), "the refusal")
    page.fill("#token", TOKEN)
    page.click("dialog [type=submit]")
    page.ready()
    assert not page.elements("dialog")
    page.driver.refresh()
    page.ready()
    assert not page.elements("dialog") and TOKEN not in page.run("return document.cookie")


def test_full_queue_is_said(strict_page, strict_service):
    page = strict_page
    running = strict_service.create(PROMPT, steps=MANY_STEPS)["id"]
    strict_service.wait_for(running, "in_progress")
    waiting = strict_service.create(PROMPT)["id"]
    page.fill("#prompt", PROMPT)
    page.click("#generate")
    page.wait(lambda: "queue is full" in page.text("#form-error"), "the message")
    assert page.element("#prompt").get_attribute("value") == PROMPT
    page.wait(lambda: len(page.elements(".queue-item")) == 2, "the queue")
    for video_id in (waiting, running):
        page.click(f'.queue-item[data-id="{video_id}"] button')
    page.wait(lambda: not page.elements(".queue-item"), "an empty queue")


def test_unusable_uploads_are_said(strict_page, tmp_path):
    large, broken, text = tmp_path / "large.png", tmp_path / "broken.png", tmp_path / "notes.txt"
    large.write_bytes(bytes((1 << 20) + 1))
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    text.write_text("no image")
    page = strict_page
    page.drop(large, "image/png")
    page.wait(lambda: "large.png" in page.text("#frames-error") and "1 MB" in page.text("#frames-error"), "its size")
    page.drop(text, "text/plain")
    page.wait(lambda: "neither an image nor a video" in page.text("#frames-error"), "its type")
    page.drop(broken, "image/png")
    page.wait(lambda: "broken.png:" in page.text("#frames-error"), "the damage")
    assert not page.elements(".given-item")
    page.drop(IMAGE, "image/png")
    page.wait(lambda: page.is_shown(".given-place"), "a good image")
    assert not page.is_shown("#frames-error")


def test_refused_field_is_marked(page):
    page.click("#generate")
    assert page.text("#prompt-error") and page.run("return document.activeElement.id") == "prompt"
    page.fill("#prompt", PROMPT)
    page.fill("#steps", 100000)
    page.click("#generate")
    page.wait(lambda: "steps" in page.text("#steps-error"), "the message")
    assert page.element("#steps").get_attribute("aria-invalid") == "true"
    page.fill("#steps", 3)
    assert not page.is_shown("#steps-error")


def test_upload_that_is_gone_is_said(page):
    page.drop(IMAGE, "image/png")
    page.wait(lambda: page.is_shown(".given-place"), "the upload")
    page.run(
        "const saved = JSON.parse(sessionStorage.form); saved.frames[0].file = 'file_' + '0'.repeat(32);"
        "sessionStorage.form = JSON.stringify(saved)"
    )
    page.driver.refresh()
    page.ready()
    page.wait(lambda: "not there any more" in page.text("#frames-error"), "the message")
    assert not page.elements(".given-item")


def test_failed_job_shows_its_message(page, service):
    running = service.create(PROMPT, steps=MANY_STEPS)["id"]
    service.wait_for(running, "in_progress")
    page.drop(IMAGE, "image/png")
    page.wait(lambda: page.is_shown(".given-place"), "the upload")
    made = page.ask(PROMPT)
    (service.data / "videos" / made / "given_000.png").unlink()
    page.click(f'.queue-item[data-id="{running}"] button')
    page.wait(lambda: "This did not work" in page.text("#stage"), "the failure", 60)
    assert "given_000.png" in page.text("#stage .message")
    assert page.text(f'.tile[data-id="{made}"] .state') == "Failed"


def test_killed_service_is_waited_for_and_the_job_finishes(page, service):
    made = page.ask(PROMPT, steps=60)
    page.wait(lambda: "Step" in page.text(".running"), "progress", 60)
    page.fill("#prompt", "typed while it is away")
    service.kill()
    page.wait(lambda: "cannot be reached" in page.text("#banner"), "the banner")
    page.click("#generate")
    page.wait(lambda: "cannot be reached" in page.text("#form-error"), "the message")
    service.start()
    page.wait(lambda: not page.is_shown("#banner"), "the connection", 90)
    assert page.element("#prompt").get_attribute("value") == "typed while it is away"
    assert page.selected() == made
    page.wait_for_video(made, 120)
