// All settings of a job.

import * as api from "./api.js";
import { h } from "./dom.js";
import { cacheText, duration, placeText, samplerText, sizeText } from "./format.js";
import { media } from "./frames.js";

const moment = (time) => (time ? new Date(time * 1000).toLocaleString() : "");

/** Pairs of names and texts; those without a text are left out. */
export function settings(job) {
  return [
    ["Model", job.model],
    ["Size", sizeText(job.size)],
    ["Frames", `${job.num_frames}${job.kind === "image" ? "" : ` at ${job.fps} per second`}`],
    ["Steps", job.steps],
    ["Guidance", job.guidance_scale],
    ["Sampler", samplerText(job.sampler)],
    ["Step cache", cacheText(job.cache)],
    ["Seed", job.seed],
    ["LoRA", job.loras.map((lora) => `${lora.name} × ${lora.scale}`).join(", ")],
    ["Negative prompt", job.negative_prompt],
  ];
}

export function details(job) {
  const took = job.completed_at && job.started_at ? duration(job.completed_at - job.started_at) : "";
  const rows = [
    ...settings(job),
    ["Priority", job.priority || ""],
    ["Made", moment(job.completed_at ?? job.created_at)],
    ["Took", took],
    ["Attempts", job.attempts > 1 ? job.attempts : ""],
  ].filter(([, text]) => text !== "" && text !== null);
  const list = h("dl", {}, rows.map(([name, text]) => [h("dt", {}, name), h("dd", {}, String(text))]).flat());
  if (job.frames.length) list.append(h("dt", {}, "Starts from"), h("dd", {}, thumbnails(job)));
  if (job.remixed_from) list.append(h("dt", {}, "Made again from"), h("dd", {}, h("a", { href: `#${job.remixed_from}` }, "this video")));
  if (job.status === "completed") {
    list.append(h("dt", {}, "Record"), h("dd", {}, h("a", { href: api.metadataUrl(job.id), target: "_blank", rel: "noopener" }, "JSON")));
  }
  return h("details", { class: "details" }, h("summary", {}, "All settings"), list);
}

function thumbnails(job) {
  const items = job.frames.map((frame) => {
    const isClip = Boolean(frame.video) || frame.frame === undefined || frame.frame === null || frame.source_frame !== undefined;
    const shown = media({ ...frame, kind: isClip ? "video" : "image", use: frame.source_frame === 0 ? "first" : "last" });
    return h("div", { title: placeText(frame) }, shown, h("span", { class: "visually-hidden" }, placeText(frame)));
  });
  return h("div", { class: "given-thumbs" }, items);
}
