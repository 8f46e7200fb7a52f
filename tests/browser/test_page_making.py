"""Making videos on the studio's page."""

from __future__ import annotations

import json

import numpy as np
import pytest
from studio_page import IMAGE, MANY_STEPS, Page

from opensora.datasets.media import save_image, write_video

PROMPT = "a red circle moves right on a blue background"
SCRIPT = "</script><script>window.hacked = 1</script>"
HOSTILE = f'<img src=x onerror="window.hacked = 1"> {SCRIPT} & "quotes" \'and\' {{}}'


def making(page: Page):
    """The state of the job in the player, from the service."""
    return page.run("return fetch('v1/videos/' + location.hash.slice(1)).then((answer) => answer.json())")


def test_from_prompt_to_playing_video(page):
    made = page.ask(PROMPT, steps=20)
    page.wait(lambda: "Step" in page.text(".running"), "progress", 60)
    page.wait_for_video(made)
    assert page.text(".stage-prompt") == PROMPT
    job = making(page)
    assert (job["status"], job["steps"], job["size"], job["num_frames"]) == ("completed", 20, "64x64", 17)
    assert page.run("return getComputedStyle(document.querySelector('#stage video')).imageRendering") == "pixelated"
    assert page.element(f'.tile[data-id="{job["id"]}"] a').get_attribute("aria-current") == "true"
    assert not page.problems()


def test_estimate_example_and_image(page):
    page.click(".chip")
    assert page.element("#prompt").get_attribute("value") == PROMPT
    page.wait(lambda: "of memory" in page.text("#estimate"), "the estimate")
    page.click("#kind-field label:nth-of-type(2)")
    assert not page.is_shown("#length-field")
    page.fill("#steps", 3)
    page.generate()
    page.wait(
        lambda: page.run("return document.querySelector('#stage .stage-media > img')?.naturalWidth"), "the image", 60
    )
    page.wait(lambda: making(page)["status"] == "completed", "the end")
    assert making(page)["kind"] == "image"


def test_settings_reach_the_request(page):
    page.click("#advanced summary")
    page.click(".seed label:nth-of-type(2)")
    page.fill("#seed", 42)
    page.fill("#guidance_scale", "5.5")
    page.run("document.getElementById('cache').value = 'easy'")
    page.run("document.getElementById('num_frames').value = '9'")
    page.fill("#negative_prompt", "blurred")
    page.wait_for_video(page.ask(PROMPT, steps=4))
    job = making(page)
    wanted = dict(seed=42, guidance_scale=5.5, cache="easy", num_frames=9, negative_prompt="blurred", steps=4)
    assert {name: job[name] for name in wanted} == wanted
    page.click("#stage .details summary")
    assert "EasyCache" in page.text("#stage dl") and "42" in page.text("#stage dl")
    assert "seed 42" in page.run("return document.getElementById('advanced-summary').textContent")


@pytest.mark.parametrize("how", ["dropped", "chosen"])
def test_image_to_video(page, how):
    if how == "dropped":
        page.drop(IMAGE, "image/png", "start.png")
    else:
        page.element("#file").send_keys(str(IMAGE))
    page.wait(
        lambda: page.run("return document.querySelector('.given-media img')?.src.includes('v1/files/file_')"), "upload"
    )
    assert page.is_shown(".given-place select")
    page.wait_for_video(page.ask(PROMPT))
    job = making(page)
    assert (job["model"], [frame["frame"] for frame in job["frames"]]) == ("image-to-video", [0])
    assert not page.problems()


def test_two_images_and_a_clip(page, tmp_path):
    clip = tmp_path / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8)
    with write_video(clip, 8) as write:
        write(frames)
    page.element("#file").send_keys(f"{IMAGE}\n{IMAGE}")
    page.wait(lambda: page.elements(".given-place select")[1:], "both images")
    values = [select.get_attribute("value") for select in page.elements(".given-place select")]
    assert values == ["0", "-1"]
    for _ in range(2):
        page.click(".given-item button")
    page.element("#file").send_keys(str(clip))
    page.wait(lambda: page.text(".given-text select").startswith("Continue"), "the clip")
    page.wait_for_video(page.ask(PROMPT))
    assert making(page)["frames"][0].get("frame") is None


def test_results_start_new_videos(page):
    page.wait_for_video(page.ask("a green square moves down on a white background"))
    first = making(page)
    page.wait_for_video(page.generate(lambda: page.click_text("Again with another seed", "#stage")))
    again = making(page)
    assert (again["prompt"], again["remixed_from"]) == (first["prompt"], first["id"]) and again["seed"] != first["seed"]
    page.click_text("Use last frame as start", "#stage")
    page.wait(lambda: page.is_shown(".given-item"), "the frame in the form")
    third = page.generate()
    assert making(page)["frames"] == [{"video": again["id"], "source_frame": -1, "frame": 0}]
    page.wait_for_video(third)
    page.click_text("Continue this video", "#stage")
    fourth = page.generate()
    assert making(page)["frames"] == [{"video": third}]
    page.wait_for_video(fourth)
    page.click_text("Edit these settings", "#stage")
    assert page.element("#prompt").get_attribute("value") == first["prompt"]
    assert page.run("return document.querySelectorAll('.given-item').length") == 1


def test_cancel(page):
    page.ask(PROMPT, steps=MANY_STEPS)
    page.wait(lambda: "Step" in page.text(".running"), "progress", 60)
    page.click("#cancel")
    page.wait(lambda: "Cancelled" in page.text("#stage"), "the end")
    page.wait(lambda: making(page)["status"] == "cancelled", "the service's answer")
    assert not page.is_shown("#queue")


def test_reload_during_a_run_keeps_form_and_job(page):
    page.ask(PROMPT, steps=MANY_STEPS)
    page.wait(lambda: page.elements("#stage .preview-tag"), "a preview", 60)
    started = page.selected()
    page.fill("#prompt", "the next idea")
    page.fill("#steps", 7)
    page.driver.refresh()
    page.ready()
    page.wait(lambda: "Step" in page.text(".running"), "the running job")
    assert page.selected() == started and making(page)["status"] == "in_progress"
    assert page.element("#prompt").get_attribute("value") == "the next idea"
    assert page.element("#steps").get_attribute("value") == "7"
    page.click("#cancel")
    page.wait(lambda: "Cancelled" in page.text("#stage"), "the end")


def test_two_tabs_agree(page, service):
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("window")
    second = Page(page.driver, service.address).open(fresh=False).ready()
    handle = page.driver.current_window_handle
    made = page.ask("a purple star moves right on a yellow background")
    page.wait_for_video(made)
    tile = f'.tile[data-id="{made}"]'
    page.driver.switch_to.window(first)
    page.wait(lambda: page.elements(tile), "the video in the other tab")
    page.click(f"{tile} a")
    page.wait_for_video(made)
    page.click_text("Delete", "#stage")
    page.click_text("Delete", "dialog")
    page.wait(lambda: not page.elements(tile), "its end")
    page.driver.switch_to.window(handle)
    second.wait(lambda: not second.elements(tile), "its end in the other tab")
    assert second.selected() != made


def test_markup_in_texts_is_shown_and_never_runs(page, tmp_path):
    image = tmp_path / "<img src=x onerror=window.hacked=1>.png"
    save_image(image, np.zeros((32, 32, 3), np.uint8))
    page.drop(image, "image/png")
    page.wait(lambda: page.is_shown(".given-place"), "the upload")
    assert page.text(".given-name") == image.name
    made = page.ask(HOSTILE)
    page.wait_for_video(made)
    assert page.text(".stage-prompt") == HOSTILE
    assert page.run("return document.querySelector('.tile .card-prompt').textContent") == HOSTILE
    page.fill("#search", SCRIPT)
    page.wait(lambda: len(page.elements(".tile")) == 1, "the search")
    page.click_text("Delete", "#stage")
    assert page.text("dialog .quote") == HOSTILE
    page.click_text("Keep it", "dialog")
    page.driver.refresh()
    page.ready()
    page.wait_for_video(made)
    assert page.run("return window.hacked === undefined && !document.querySelector('img[src=x]')")
    assert not page.problems()


def test_search_filter_and_pages(page, service):
    running = service.create("makes the others wait", steps=MANY_STEPS)["id"]
    made = [service.create(f"filling number {number}")["id"] for number in range(30)]
    made.append(service.create("newer than these")["id"])
    page.wait(lambda: "Show all" in page.text("#queue-more"), "a long queue")
    for video_id in (*made, running):  # a cancelled video costs no time
        service.http.post(f"/v1/videos/{video_id}/cancel", json={})
    page.wait(lambda: not page.is_shown("#queue"), "an empty queue")
    page.driver.refresh()
    page.ready()
    page.fill("#search", "filling number")
    prompts = "return [...document.querySelectorAll('.card-prompt')].map((prompt) => prompt.textContent)"
    page.wait(lambda: all("filling" in prompt for prompt in page.run(prompts)) and page.run(prompts), "the search")
    assert len(page.elements(".tile")) == 24
    page.click("#more")
    page.wait(lambda: len(page.elements(".tile")) == 30, "all of them")
    assert not page.is_shown("#more")
    page.fill("#search", "filling number 7")
    page.wait(lambda: len(page.elements(".tile")) == 1, "the search")
    page.run("const s = document.getElementById('status'); s.value = 'failed'; s.dispatchEvent(new Event('change'))")
    page.wait(lambda: "No video fits" in page.text("#gallery-note"), "the note")


def test_comparison_plays_in_step(page, service):
    made = [service.create("compared", num_frames=count, seed=1)["id"] for count in (17, 9)]
    for video_id in made:
        page.wait(lambda video_id=video_id: page.elements(f'.tile[data-id="{video_id}"]'), "the videos")
        page.click(f'.tile[data-id="{video_id}"] .pick')
    page.click("#compare-open")
    times = "return [...document.querySelectorAll('dialog video')].map((v) => [v.currentTime, v.duration])"
    page.wait(lambda: all(time > 0.1 for time, _ in page.run(times)), "both to play")
    (longer, _), (shorter, duration) = page.run(times)
    assert abs(min(longer, duration) - shorter) < 0.3
    page.click("dialog .transport .secondary")  # pause
    page.run("const s = document.querySelector('dialog input'); s.value = 0.5; s.dispatchEvent(new Event('input'))")
    page.wait(lambda: all(abs(time - 0.5) < 0.01 for time, _ in page.run(times)), "both at the chosen time")
    assert "Frames" in page.text("dialog table") and "Seed" not in page.text("dialog table")


def test_download_and_command_line(page):
    page.wait_for_video(page.ask(PROMPT))
    link = page.element("#stage .actions a").get_attribute("href")
    head = page.run(
        "return fetch(arguments[0]).then(async (a) => [a.headers.get('content-disposition'), (await a.blob()).size])",
        link,
    )
    assert "attachment" in head[0] and head[1] > 500
    page.run("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    page.click_text("Copy command", "#stage")
    page.wait(lambda: page.run("return window.copied"), "the command")
    assert page.run("return window.copied").startswith("opensora sample ")
    assert json.dumps(PROMPT)[1:-1] in page.run("return window.copied")
