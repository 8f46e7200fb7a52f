// The player: the selected video, or how far it is.

import * as api from "./api.js";
import { $, button, h, icon, recall, remember } from "./dom.js";
import { cancel, copyCommand, remove, startFrom } from "./actions.js";
import { details } from "./details.js";
import { duration, isSmall, leftText, lengthText, sizeText, stageText } from "./format.js";
import { useSettings } from "./form.js";
import { again } from "./submit.js";
import { isFinal, modelFor, on, state, togglePick } from "./state.js";

let shown = null; // id and status; null until the service has said what there is
let update = null; // of a running job
let opened = false; // whether a video was chosen, and starts by itself

export function startStage() {
  $("stage").replaceChildren(h("div", { class: "stage-media stage-empty skeleton" }));
  on("selected", showStage);
  on("job", ({ job }) => job.id === state.selected && showStage());
  on("picks", showPick);
}

export function showStage() {
  const job = state.jobs.get(state.selected);
  const key = job ? `${job.id} ${job.status}` : "";
  if (key === shown) {
    if (job && !isFinal(job)) update?.(job);
    return;
  }
  const hadFocus = $("stage").contains(document.activeElement) && document.activeElement !== $("stage");
  shown = key;
  update = null;
  if (job) setRatio(job.size);
  if (!job) $("stage").replaceChildren(...empty());
  else if (!isFinal(job)) $("stage").replaceChildren(...running(job));
  else if (job.status === "completed") $("stage").replaceChildren(...completed(job));
  else $("stage").replaceChildren(...ended(job));
  showPick();
  if (hadFocus) $("stage").focus({ preventScroll: true });
  opened = true;
}

function setRatio(size) {
  const [width, height] = size.split("x").map(Number);
  $("stage").style.setProperty("--ratio", width / height);
}

function mediaBox(job, ...children) {
  return h("div", { class: "stage-media", "data-small": isSmall(job.size) }, children);
}

function info(job, ...children) {
  const facts = [sizeText(job.size), job.kind === "image" ? "image" : `${duration(job.seconds)}, ${job.num_frames} frames`, `${job.steps} steps`, `seed ${job.seed}`];
  return h(
    "div",
    { class: "stage-info" },
    // It scrolls where it is long, and keys scroll only what has the focus.
    h("p", { class: "stage-prompt", tabindex: job.prompt.length > 150 ? "0" : null }, job.prompt),
    h("ul", { class: "facts", "aria-label": "Settings" }, facts.map((fact) => h("li", {}, fact))),
    children,
  );
}

function empty() {
  const note = h(
    "div",
    { class: "stage-note" },
    h("img", { src: "page/empty.svg", alt: "" }),
    h("h2", {}, "Your next video appears here"),
    h("p", {}, "Describe it, or take one of the examples, and choose Generate. You see it take shape while it is made."),
  );
  return [h("div", { class: "stage-media stage-empty" }, note)];
}

function running(job) {
  const place = mediaBox(job);
  const note = h("div", { class: "stage-note" }, h("div", { class: "spinner" }), h("p", {}));
  const label = h("span", {});
  const left = h("span", {});
  const bar = h("progress", { max: 100, value: job.progress, "aria-label": "Progress" });
  let image = null;
  let address = null;
  place.append(note);

  async function showPreview(of) {
    const wanted = api.previewUrl(of);
    if (!wanted || wanted === address) return;
    address = wanted;
    const next = h("img", { src: wanted, alt: "Preview of the video in progress" });
    try {
      await next.decode(); // swapped when loaded, so that it does not flicker
    } catch {
      return; // replaced or removed meanwhile
    }
    if (address !== wanted || !place.isConnected) return;
    if (image) image.replaceWith(next);
    else place.replaceChildren(next, h("span", { class: "preview-tag" }, "Preview"));
    image = next;
  }

  update = (now) => {
    note.lastElementChild.textContent = stageText(now);
    label.textContent = stageText(now);
    left.textContent = leftText(now) || (now.attempts > 1 ? `attempt ${now.attempts}` : "");
    bar.value = now.progress;
    bar.hidden = now.status === "queued";
    showPreview(now);
  };
  update(job);
  queueMicrotask(() => showPreview(job));
  const line = h("div", { class: "running-line" }, label, left);
  const stop = button("Cancel", "close", () => cancel(state.jobs.get(job.id)), { class: "secondary", id: "cancel" });
  return [place, info(job, h("div", { class: "running" }, line, bar), h("div", { class: "actions" }, stop))];
}

function completed(job) {
  return [mediaBox(job, job.kind === "image" ? image(job) : video(job)), info(job, actions(job), details(job))];
}

const image = (job) => h("img", { src: api.contentUrl(job.id), alt: job.prompt });

function video(job) {
  const element = h("video", {
    src: api.contentUrl(job.id),
    poster: api.thumbnailUrl(job.id),
    controls: true,
    playsinline: true,
    muted: true,
    loop: loops(),
    "aria-label": job.prompt,
  });
  // Muted videos may start by themselves; the first one shown on opening the page waits if motion is unwelcome.
  if (opened || !matchMedia("(prefers-reduced-motion: reduce)").matches) element.autoplay = true;
  return element;
}

const loops = () => recall("localStorage", "loop") ?? true;

function loopButton() {
  const toggle = button("Repeat", "repeat", () => {
    const loop = !loops();
    remember("localStorage", "loop", loop);
    toggle.setAttribute("aria-pressed", loop);
    const element = $("stage").querySelector("video");
    element.loop = loop;
    if (loop && element.ended) element.play();
  }, { class: "quiet", "aria-pressed": String(loops()) });
  return toggle;
}

function actions(job) {
  const isVideo = job.kind === "video";
  const takesFrames = Boolean(modelFor(true));
  const plain = { class: "secondary" };
  return h(
    "div",
    { class: "actions" },
    h("a", { class: "button tonal", href: api.downloadUrl(job.id), download: "" }, icon("download"), "Download"),
    button("Again with another seed", "shuffle", () => again(job), plain),
    takesFrames && isVideo && button("Continue this video", "continue", () => startFrom(job, "continue"), plain),
    takesFrames && button(isVideo ? "Use last frame as start" : "Use as first frame", "last", () => startFrom(job, "last"), plain),
    button("Edit these settings", "edit", () => useSettings(job), plain),
    h(
      "div",
      { class: "action-row" },
      isVideo && loopButton(),
      isVideo && button("Compare", "columns", () => togglePick(job.id), { class: "quiet", id: "stage-pick" }),
      button("Copy command", "command", () => copyCommand(job), { class: "quiet", "aria-label": "Copy command line" }),
      deleteButton(job),
    ),
  );
}

const deleteButton = (job) => button("Delete", "trash", () => removeAndMove(job), { class: "quiet danger" });

async function removeAndMove(job) {
  if (await remove(job)) $("stage").focus({ preventScroll: true });
}

function showPick() {
  $("stage-pick")?.setAttribute("aria-pressed", state.picks.includes(state.selected));
}

function ended(job) {
  const failed = job.status === "failed";
  const note = h(
    "div",
    { class: "stage-note", "data-kind": job.status },
    icon(failed ? "alert" : "close"),
    h("h2", {}, failed ? "This did not work" : "Cancelled"),
    failed && h("p", { class: "message", tabindex: "0", role: "group", "aria-label": "Error" }, job.error?.message ?? "No reason is known."),
  );
  const buttons = h(
    "div",
    { class: "actions" },
    button(failed ? "Try again" : "Make it again", "undo", () => again(job, { sameSeed: true }), { class: "primary" }),
    button("Edit these settings", "edit", () => useSettings(job), { class: "secondary" }),
    h("div", { class: "action-row" }, deleteButton(job)),
  );
  return [mediaBox(job, note), info(job, buttons, details(job))];
}

/** The accessible name of a job in lists. */
export const jobName = (job) => {
  const states = { completed: lengthText(job), failed: "failed", cancelled: "cancelled" };
  return `${job.prompt}, ${states[job.status] ?? stageText(job)}`;
};
