// The state of the service: in the header, in the banner, in the title; and progress for screen readers.

import { $, announce, button } from "./dom.js";
import { retryNow } from "./events.js";
import { isOwn } from "./submit.js";
import { isFinal, on, state, unfinished } from "./state.js";

const TITLE = document.title;
const ANNOUNCED_PERCENT = 25;

export function startStatus() {
  on("connection", show);
  on("service", show);
  on("job", ({ job, before }) => {
    showTitle();
    if (isOwn(job.id) || job.id === state.selected) say(job, before);
  });
  on("removed", showTitle);
}

function show() {
  const [kind, text] = describe();
  $("service-state").dataset.state = kind;
  if ($("service-state").textContent !== text) $("service-state").firstElementChild.textContent = text;
  showBanner();
}

function describe() {
  if (state.connection === "lost") return ["lost", "Not connected"];
  const workers = state.service?.workers ?? [];
  const busy = workers.filter((worker) => worker.state === "busy").length;
  const waiting = state.service?.queue ?? 0;
  if (busy) return ["busy", `Working${waiting ? ` · ${waiting} waiting` : ""}`];
  if (workers.some((worker) => worker.state === "idle")) return ["idle", "Ready"];
  if (workers.length && workers.every((worker) => worker.state === "failing")) return ["failing", "No worker"];
  return ["starting", "Starting"];
}

function showBanner() {
  const failing = state.service?.workers.filter((worker) => worker.state === "failing") ?? [];
  if (state.connection === "lost") {
    setBanner("lost", "The service cannot be reached. What you entered is kept; the page connects again by itself.",
      button("Try now", null, retryNow, { class: "small" }));
  } else if (failing.length && failing.length === state.service.workers.length) {
    setBanner("error", `No worker can be started: ${failing[0].message}`);
  } else setBanner("", "");
}

function setBanner(kind, text, ...more) {
  const banner = $("banner");
  if (banner.dataset.text === text) return; // it would be read out again
  banner.dataset.text = text;
  banner.dataset.kind = kind;
  banner.hidden = !text;
  banner.replaceChildren(text, ...more);
}

function showTitle() {
  const job = unfinished().find((found) => found.status === "in_progress" && isOwn(found.id));
  document.title = job ? `${job.progress} % · ${TITLE}` : TITLE;
}

function say(job, before) {
  if (isFinal(job)) {
    if (!before || isFinal(before)) return;
    if (job.status === "completed") announce(`Finished: ${job.prompt}`);
    else announce(job.status === "failed" ? `Failed: ${job.error?.message ?? ""}` : "Cancelled");
  } else if (job.status === "in_progress") {
    const quarter = (of) => Math.floor((of?.progress ?? 0) / ANNOUNCED_PERCENT);
    if (before?.status === "queued") announce("Started");
    else if (quarter(job) > quarter(before)) announce(`${quarter(job) * ANNOUNCED_PERCENT} percent`);
  }
}
