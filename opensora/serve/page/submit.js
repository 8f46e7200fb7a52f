// Sending requests: from the form, and again from earlier jobs; the estimate before.

import * as api from "./api.js";
import { $, announce, bringIntoView, h, toast } from "./dom.js";
import { bytes, duration, sentence } from "./format.js";
import { clearErrors, requestBody, showFieldError } from "./form.js";
import { isUploading, uploadsDone } from "./frames.js";
import { putJob, select, state } from "./state.js";

const DEBOUNCE_MS = 400;
const own = new Set(); // jobs of this page

/** Whether this page has asked for a job since it was opened. */
export const isOwn = (id) => own.has(id);

export function startSubmitting() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
}

let sending = false;

export async function submit() {
  if (sending) return;
  clearErrors();
  if (!$("prompt").value.trim()) {
    showFieldError("prompt", "Describe what to make first.");
    return;
  }
  sending = true;
  $("generate").setAttribute("aria-disabled", "true");
  try {
    await uploadsDone();
    follow(await send(requestBody()));
  } catch (error) {
    showError(error);
  } finally {
    sending = false;
    $("generate").removeAttribute("aria-disabled");
  }
}

async function send(body) {
  const asked = performance.now();
  const job = await api.createVideo(body);
  own.add(job.id);
  putJob(job, asked);
  return job;
}

function follow(job) {
  select(job.id);
  announce("Added to the queue");
  bringIntoView($("stage"));
}

function showError(error) {
  if (error.status === 401) return; // the token is asked for
  if (error.param && showFieldError(error.param, sentence(error.message))) return;
  const message = error.isUnreachable
    ? "The service cannot be reached. What you entered is kept."
    : error.code === "queue_full"
      ? `The queue is full: ${error.message}`
      : sentence(error.message);
  $("form-error").textContent = message;
  $("form-error").hidden = false;
}

/** Makes a job again, with another seed or the same. */
export async function again(job, { sameSeed = false } = {}) {
  const body = { remixed_from: job.id, seed: sameSeed ? job.seed : null };
  const names = ["prompt", "negative_prompt", "model", "size", "num_frames", "fps", "steps", "guidance_scale"];
  for (const name of [...names, "sampler", "cache", "loras", "frames", "priority"]) body[name] = job[name];
  try {
    follow(await send(body));
  } catch (error) {
    if (error.status !== 401) toast(sentence(error.message));
  }
}

// The estimate

let timer = 0;
let running = null;
let shown = "";

/** Asks for the estimate of the form's request once it has stopped changing. */
export function estimateSoon() {
  clearTimeout(timer);
  timer = setTimeout(estimateNow, DEBOUNCE_MS);
}

async function estimateNow() {
  if (isUploading() || state.connection !== "open") return;
  const body = requestBody();
  // Neither the words nor the seed change what it costs.
  Object.assign(body, { prompt: "a prompt", seed: 0, priority: 0 });
  const key = JSON.stringify(body);
  if (key === shown) return;
  running?.abort();
  const mine = (running = new AbortController());
  const late = setTimeout(() => show("", "Estimating …"), 250);
  try {
    const found = await api.estimate(body, mine.signal);
    shown = key;
    if (found.fits) {
      const about = found.basis === "measured" ? "from earlier videos" : "a rough estimate";
      show("", "About ", h("strong", {}, duration(found.seconds)), ` and ${bytes(found.memory_bytes)} of memory, ${about}`);
    } else show("bad", `Does not fit into memory: ${found.message}`);
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = "";
    show("bad", error.status === 422 ? sentence(error.message) : "");
  } finally {
    clearTimeout(late);
  }
}

function show(kind, ...parts) {
  $("estimate").dataset.state = kind;
  $("estimate").replaceChildren(h("span", {}, ...parts));
}
