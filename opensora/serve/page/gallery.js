// Videos that have been made, newest first: search, filter, pages, keys.

import * as api from "./api.js";
import { $, h, icon, iconButton, prefersLessMotion } from "./dom.js";
import { ago, isSmall, lengthText } from "./format.js";
import { jobName } from "./stage.js";
import { isFinal, on, putJob, state, togglePick } from "./state.js";

const PAGE = 24;
const LONGEST_LIST = 200; // of the service
const SEARCH_MS = 200;
const HOVER_MS = 150;

let ids = []; // newest first
let hasMore = false;
let last = null; // id of the last job that the service listed
let listed = ""; // the filters of the list
let loading = null;
const tiles = new Map();

export function startGallery() {
  let timer = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(load, SEARCH_MS);
  });
  $("search").addEventListener("keydown", (event) => event.key === "Enter" && load());
  $("status").addEventListener("change", () => load());
  $("more").addEventListener("click", () => load({ more: true }));
  $("grid").addEventListener("keydown", move);
  $("grid").addEventListener("focusin", (event) => setActive(event.target.closest(".tile")));
  on("job", ({ job }) => show(job));
  on("removed", removeTile);
  on("selected", markSelected);
  on("picks", () => tiles.forEach((tile, id) => showPick(tile, id)));
  on("service", ({ service, first }) => first && setRatio(service.models[0].defaults.size));
  $("grid").replaceChildren(...Array.from({ length: 6 }, () => h("li", { class: "skeleton", "aria-hidden": "true" })));
}

const filters = () => ({ query: $("search").value.trim(), status: $("status").value });

/** Fetches the first page anew, keeping as many as are shown, or the next page. */
export async function load({ more = false, keep = false } = {}) {
  const wanted = JSON.stringify(filters());
  if (wanted !== listed) more = keep = false;
  loading?.abort();
  const mine = (loading = new AbortController());
  const limit = keep ? Math.min(LONGEST_LIST, Math.max(PAGE, ids.length)) : PAGE;
  const asked = performance.now();
  $("grid").setAttribute("aria-busy", "true");
  try {
    const list = await api.listVideos({ ...filters(), limit, after: more ? last : null }, mine.signal);
    listed = wanted;
    const found = list.data.filter(isFinal).map((job) => job.id);
    const firstNew = found[0];
    ids = more ? [...ids, ...found.filter((id) => !ids.includes(id))] : found;
    hasMore = list.has_more;
    last = list.data.at(-1)?.id ?? last;
    for (const job of list.data) putJob(job, asked);
    ids = ids.filter((id) => state.jobs.has(id));
    render();
    // The button may be gone now, and what it brought is what a keyboard or screen reader wants next.
    if (more && firstNew) tiles.get(firstNew)?.querySelector("a").focus();
  } catch (error) {
    if (error.name !== "AbortError" && !error.isUnreachable && error.status !== 401) note(error.message);
  } finally {
    if (mine === loading) $("grid").removeAttribute("aria-busy");
  }
}

/** The newest video that is completed, of those that are shown. */
export const newest = () => ids.find((id) => state.jobs.get(id)?.status === "completed") ?? null;

function matches(job) {
  const { query, status } = filters();
  const found = job.prompt.toLowerCase().includes(query.toLowerCase());
  return isFinal(job) && found && (!status || job.status === status);
}

/** A job has a new state. */
function show(job) {
  const known = ids.includes(job.id);
  if (!matches(job)) {
    if (known) removeTile(job.id);
    return;
  }
  if (known) {
    const tile = tiles.get(job.id);
    if (tile && tile.dataset.status !== job.status) {
      tile.replaceWith(makeTile(job));
      markSelected();
    }
    return;
  }
  if ($("grid").hasAttribute("aria-busy")) return; // the list that comes has it
  const place = ids.findIndex((id) => state.jobs.get(id).created_at < job.created_at);
  if (place < 0 && hasMore) return; // on a later page
  ids.splice(place < 0 ? ids.length : place, 0, job.id);
  render();
}

function removeTile(id) {
  if (!ids.includes(id)) return;
  const hadFocus = tiles.get(id)?.contains(document.activeElement);
  const place = ids.indexOf(id);
  ids = ids.filter((other) => other !== id);
  render();
  if (hadFocus) tiles.get(ids[Math.min(place, ids.length - 1)])?.querySelector("a").focus();
}

function render() {
  for (const [id, tile] of tiles) {
    if (ids.includes(id)) continue;
    tile.remove();
    tiles.delete(id);
  }
  for (const skeleton of $("grid").querySelectorAll(".skeleton")) skeleton.remove();
  ids.forEach((id, place) => {
    const tile = tiles.get(id) ?? makeTile(state.jobs.get(id));
    if ($("grid").children[place] !== tile) $("grid").insertBefore(tile, $("grid").children[place] ?? null);
  });
  if (!$("grid").querySelector('a[tabindex="0"]')) setActive($("grid").firstElementChild);
  markSelected();
  $("more").hidden = !hasMore;
  const { query, status } = filters();
  if (ids.length || hasMore) note("");
  else note(query || status ? "No video fits this search." : "Finished videos are kept here.");
}

function note(text) {
  $("gallery-note").textContent = text;
  $("gallery-note").hidden = !text;
}

function makeTile(job) {
  const link = h(
    "a",
    { class: "card", href: `#${job.id}`, "aria-label": jobName(job), tabindex: "-1" },
    h("div", { class: "card-media" }, cardMedia(job)),
    h("p", { class: "card-prompt" }, job.prompt),
    h("p", { class: "card-facts" }, ago(job.completed_at ?? job.created_at)),
  );
  const canCompare = job.status === "completed" && job.kind === "video";
  const pick = iconButton("Compare", "columns", () => togglePick(job.id), { class: "pick", tabindex: "-1", "aria-pressed": "false" });
  const tile = h("li", { class: "tile", "data-id": job.id, "data-status": job.status, "data-small": isSmall(job.size) }, link, canCompare && pick);
  if (canCompare) playOnHover(link, job);
  showPick(tile, job.id);
  tiles.set(job.id, tile);
  return tile;
}

function cardMedia(job) {
  if (job.status !== "completed") {
    const name = job.status === "failed" ? "alert" : "close";
    return h("span", { class: "state" }, icon(name), job.status === "failed" ? "Failed" : "Cancelled");
  }
  return [
    h("img", { src: api.thumbnailUrl(job.id), alt: "", loading: "lazy", decoding: "async" }),
    h("span", { class: "card-length" }, lengthText(job)),
  ];
}

function playOnHover(link, job) {
  let timer = 0;
  const stop = () => {
    clearTimeout(timer);
    link.querySelector("video")?.remove();
  };
  const start = () => {
    if (prefersLessMotion()) return;
    stop();
    timer = setTimeout(() => {
      const video = h("video", { src: api.contentUrl(job.id), muted: true, loop: true, playsinline: true, autoplay: true, "aria-hidden": "true" });
      link.querySelector("img")?.after(video);
    }, HOVER_MS);
  };
  link.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && start());
  link.addEventListener("pointerleave", stop);
  link.addEventListener("focus", start);
  link.addEventListener("blur", stop);
}

function showPick(tile, id) {
  tile.querySelector(".pick")?.setAttribute("aria-pressed", state.picks.includes(id));
}

function markSelected() {
  for (const [id, tile] of tiles) {
    const link = tile.querySelector("a");
    if (id === state.selected) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

/** Tab reaches one video of the grid, the arrows the others. */
function setActive(tile) {
  if (!tile?.dataset.id) return;
  for (const other of tiles.values()) {
    for (const control of other.querySelectorAll("a, button")) control.tabIndex = other === tile ? 0 : -1;
  }
}

function move(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const shown = [...$("grid").children];
  const place = shown.indexOf(event.target.closest(".tile"));
  const columns = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const targets = { Home: 0, End: shown.length - 1 };
  const target = targets[event.key] ?? place + (steps[event.key] ?? NaN);
  if (event.key.toLowerCase() === "c") togglePick(shown[place].dataset.id);
  if (Number.isNaN(target)) return;
  event.preventDefault();
  shown[target]?.querySelector("a").focus();
}

/** Tiles have the shape of the service's usual videos, within what looks well. */
function setRatio(size) {
  const [width, height] = size.split("x").map(Number);
  $("grid").style.setProperty("--card-ratio", Math.min(16 / 9, Math.max(3 / 4, width / height)));
}
