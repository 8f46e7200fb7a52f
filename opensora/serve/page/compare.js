// Two videos side by side, in step.

import * as api from "./api.js";
import { $, h, iconButton } from "./dom.js";
import { openDialog } from "./dialogs.js";
import { settings } from "./details.js";
import { isSmall } from "./format.js";
import { clearPicks, on, state } from "./state.js";

const MOST_DRIFT = 0.06; // seconds, half a frame at 8 frames per second

export function startCompare() {
  on("picks", showBar);
  on("removed", showBar);
  $("compare-open").addEventListener("click", compare);
  $("compare-clear").addEventListener("click", () => {
    clearPicks();
    $("stage").focus({ preventScroll: true });
  });
}

function showBar() {
  const count = state.picks.length;
  $("compare-bar").hidden = count === 0;
  $("compare-text").textContent = count < 2 ? "Choose another video to compare" : "Two videos chosen";
  $("compare-open").hidden = count < 2;
}

function compare() {
  const jobs = state.picks.map((id) => state.jobs.get(id));
  const videos = jobs.map((job) =>
    h("video", { src: api.contentUrl(job.id), muted: true, playsinline: true, preload: "auto", "aria-label": job.prompt }),
  );
  const player = new Player(videos);
  const sides = jobs.map((job, side) =>
    h(
      "div",
      { class: "compare-side", "data-small": isSmall(job.size) },
      h("div", { class: "compare-media" }, videos[side]),
      h("p", {}, job.prompt),
    ),
  );
  openDialog("Comparison", "compare", () => player.stop(), h("div", { class: "compare-pair" }, sides), player.controls, differences(jobs));
  player.playButton.focus();
  player.play();
}

/** Plays videos together: the longest sets the time, the others follow and wait at their ends. */
class Player {
  constructor(videos) {
    this.videos = videos;
    this.time = 0;
    this.playing = false;
    this.stopped = false;
    this.playButton = iconButton("Play", "play", () => (this.playing ? this.pause() : this.play()), { class: "secondary icon-only" });
    this.slider = h("input", { type: "range", min: 0, max: 1, step: "any", value: 0, "aria-label": "Time", oninput: () => this.seek(Number(this.slider.value)) });
    this.clock = h("output", {});
    this.controls = h(
      "div",
      { class: "transport" },
      iconButton("One frame back", "step-back", () => this.stepBy(-1), { class: "quiet icon-only" }),
      this.playButton,
      iconButton("One frame forward", "step-forward", () => this.stepBy(1), { class: "quiet icon-only" }),
      this.slider,
      this.clock,
    );
    for (const video of videos) video.addEventListener("ended", () => this.playing && video === this.master && this.restart());
  }

  get master() {
    return this.videos.reduce((a, b) => ((b.duration || 0) > (a.duration || 0) ? b : a));
  }

  async play() {
    this.setPlaying(true);
    if (this.master.ended) this.seek(0);
    await Promise.all(this.videos.map((video) => !video.ended && video.play().catch(() => {})));
    this.tick();
  }

  pause() {
    this.setPlaying(false);
    for (const video of this.videos) video.pause();
    this.align();
  }

  restart() {
    this.seek(0);
    this.play();
  }

  stop() {
    this.stopped = true;
    this.pause();
  }

  setPlaying(playing) {
    this.playing = playing;
    const label = playing ? "Pause" : "Play";
    this.playButton.replaceChildren(iconButton("", playing ? "pause" : "play").firstElementChild);
    this.playButton.setAttribute("aria-label", label);
    this.playButton.title = label;
  }

  seek(time) {
    for (const video of this.videos) video.currentTime = Math.min(time, video.duration || 0);
    this.show();
  }

  stepBy(frames) {
    this.pause();
    const fps = Math.max(...state.picks.map((id) => state.jobs.get(id)?.fps ?? 8));
    this.seek(Math.min(this.master.duration || 0, Math.max(0, this.master.currentTime + frames / fps)));
  }

  /** Brings those that have drifted to the time of the longest. */
  align() {
    const { master } = this;
    for (const video of this.videos) {
      if (video === master) continue;
      const wanted = Math.min(master.currentTime, video.duration || 0);
      if (Math.abs(video.currentTime - wanted) > MOST_DRIFT) video.currentTime = wanted;
      if (this.playing && video.paused && wanted < video.duration - MOST_DRIFT) video.play().catch(() => {});
    }
  }

  tick() {
    if (this.stopped || !this.playing || this.waiting) return;
    this.align();
    this.show();
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.tick();
    });
  }

  show() {
    const { master } = this;
    if (!master.duration) return;
    this.slider.max = master.duration;
    this.slider.value = master.currentTime;
    this.clock.textContent = `${master.currentTime.toFixed(1)} / ${master.duration.toFixed(1)} s`;
  }
}

function differences(jobs) {
  const [first, second] = jobs.map(settings);
  const rows = first.map(([name, text], i) => [name, text, second[i][1]]).filter(([, a, b]) => String(a) !== String(b));
  if (!rows.length) return h("p", {}, "All settings are the same.");
  const cell = (text) => h("td", {}, String(text) || "–");
  return h(
    "table",
    {},
    h("caption", {}, "What differs"),
    h("thead", { class: "visually-hidden" }, h("tr", {}, ["Setting", "Left", "Right"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map(([name, a, b]) => h("tr", {}, h("th", { scope: "row" }, name), cell(a), cell(b)))),
  );
}
