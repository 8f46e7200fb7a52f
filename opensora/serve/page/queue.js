// Jobs that wait or are being made.

import * as api from "./api.js";
import { $, h, iconButton } from "./dom.js";
import { cancel } from "./actions.js";
import { leftText, stageText } from "./format.js";
import { isFinal, on, select, state, unfinished } from "./state.js";

const SHORT = 5;
const rows = new Map(); // id -> {element, update}
let all = false;

export function startQueue() {
  on("job", ({ job, before }) => {
    if (!isFinal(job) || (before && !isFinal(before))) show();
  });
  on("removed", (id) => rows.has(id) && show());
  on("selected", show);
  $("queue-more").addEventListener("click", () => {
    all = !all;
    show();
  });
}

function show() {
  const jobs = unfinished();
  const visible = all ? jobs : jobs.slice(0, SHORT);
  for (const [id, row] of rows) {
    if (visible.some((job) => job.id === id)) continue;
    const hadFocus = row.element.contains(document.activeElement);
    row.element.remove();
    rows.delete(id);
    if (hadFocus) ($("queue-list").querySelector("button") ?? $("stage")).focus({ preventScroll: true });
  }
  visible.forEach((job, place) => {
    if (!rows.has(job.id)) rows.set(job.id, makeRow(job));
    const row = rows.get(job.id);
    if ($("queue-list").children[place] !== row.element) {
      $("queue-list").insertBefore(row.element, $("queue-list").children[place] ?? null);
    }
    row.update(job);
  });
  // The player shows the selected one.
  $("queue").hidden = jobs.every((job) => job.id === state.selected);
  $("queue-count").textContent = jobs.length > 1 ? jobs.length : "";
  $("queue-more").hidden = jobs.length <= SHORT;
  $("queue-more").textContent = all ? "Show fewer" : `Show all ${jobs.length}`;
}

function makeRow(job) {
  const place = h("div", { class: "queue-media", "aria-hidden": "true" });
  const link = h("a", { href: `#${job.id}`, onclick: () => select(job.id) }, job.prompt);
  const text = h("p", {});
  const bar = h("progress", { max: 100, value: 0, "aria-label": `Progress of ${job.prompt}` });
  const stop = iconButton(`Cancel ${job.prompt}`, "close", () => cancel(job), { class: "quiet danger icon-only small" });
  const element = h("li", { class: "queue-item", "data-id": job.id }, place, h("div", { class: "queue-text" }, link, bar, text), stop);
  let shown = null;

  function update(now) {
    element.toggleAttribute("data-running", now.status === "in_progress");
    if (now.id === state.selected) element.setAttribute("aria-current", "true");
    else element.removeAttribute("aria-current");
    text.textContent = [stageText(now), leftText(now)].filter(Boolean).join(" · ");
    bar.hidden = now.status === "queued";
    bar.value = now.progress;
    const address = api.previewUrl(now);
    const wanted = address ?? String(now.position ?? "");
    if (wanted === shown) return;
    shown = wanted;
    place.replaceChildren(address ? h("img", { src: address, alt: "", onerror: (event) => event.target.remove() }) : wanted);
  }
  return { element, update };
}
