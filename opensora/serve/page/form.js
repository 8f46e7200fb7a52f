// The form: its choices come from the service, its values become a request, and it survives a reload.

import { $, button, h, recall, remember } from "./dom.js";
import { cacheText, duration, samplerText, sizeText } from "./format.js";
import { givenFrames, render as renderFrames, savedFrames, setFrames, setFramesOf, startFrames } from "./frames.js";
import { chosenLoras, offerLoras, setLoras, startLoras } from "./loras.js";
import { modelFor, on, state } from "./state.js";

const NUMBERS = ["num_frames", "steps", "guidance_scale", "fps", "priority"];
const DEFAULTS = ["size", "num_frames", "steps", "guidance_scale", "sampler", "fps", "negative_prompt"];
const MOST_RANGE = 100; // steps on the slider

let offered = ""; // what the choices were made from
let defaults = null; // of the model whose values the form has
let changed = () => {};

const form = $("composer");
const fields = () => form.elements;

/** Starts the form; `onChange` is called after every change of the request. */
export function startForm(onChange) {
  changed = () => {
    if (!defaults) return;
    syncKind();
    applyModel();
    showSummary();
    save();
    onChange();
  };
  startFrames(() => {
    if (givenFrames().length) fields().kind.value = "video"; // an image has no further frames
    changed();
  });
  startLoras(changed);
  form.addEventListener("input", (event) => {
    pair(event.target);
    clearError(event.target.name);
    changed();
  });
  form.addEventListener("change", changed);
  $("advanced").addEventListener("toggle", save);
  $("reset").addEventListener("click", () => {
    const prompt = fields().prompt.value;
    form.reset();
    fields().prompt.value = prompt;
    defaults = null;
    setLoras([]);
    applyModel();
    changed();
  });
  on("service", offer);
}

/** Fills the choices from the service's description, when it has changed. */
function offer({ service, first }) {
  const { models, samplers, caches, loras, limits } = service;
  const now = JSON.stringify([models, samplers, caches, loras, limits]);
  if (now === offered) return;
  offered = now;
  setOptions("sampler", samplers.map((name) => [name, samplerText(name)]));
  setOptions("cache", [["", "Off"], ...caches.map((name) => [name, cacheText(name)])]);
  fields().prompt.maxLength = fields().negative_prompt.maxLength = limits.max_prompt;
  fields().steps.max = limits.max_steps;
  $("steps-range").max = Math.min(MOST_RANGE, limits.max_steps);
  $("given").hidden = !modelFor(true);
  offerLoras();
  applyModel();
  if (first) restore();
  changed();
}

/** Gives the form the choices of the model that fits; values that were the other model's defaults follow. */
function applyModel() {
  const frames = givenFrames().length > 0 && fields().kind.value === "video";
  const same = state.service.models.filter((model) => (model.task === "image-to-video") === frames);
  if (setOptions("model", same.map((model) => [model.id, model.title]))) $("model-field").hidden = same.length < 2;
  const model = modelFor(frames, fields().model.value) ?? state.service.models[0];
  const { max_pixels: maxPixels, max_frames: maxFrames } = state.service.limits;
  const fits = (size) => size.split("x").reduce((a, b) => a * b) <= maxPixels;
  setOptions("size", model.sizes.filter(fits).map((size) => [size, sizeText(size)]));
  const fps = Number(fields().fps.value) || model.fps;
  const lengths = model.frames.filter((count) => count > 1 && count <= maxFrames);
  setOptions("num_frames", lengths.map((count) => [count, `${duration(count / fps)} · ${count} frames`]));
  for (const name of DEFAULTS) {
    const value = String(model.defaults[name] ?? "");
    if (defaults === null || fields()[name].value === String(defaults[name] ?? "")) setValue(name, value);
  }
  defaults = model.defaults;
  showExamples(model.example_prompts);
}

/** Replaces the choices of a select; its value stays if it can. False if the choices are the same. */
function setOptions(name, choices) {
  const select = fields()[name];
  const key = JSON.stringify(choices);
  if (select.dataset.choices === key) return false;
  const { value } = select;
  const isExtra = select.selectedOptions[0]?.dataset.extra !== undefined;
  select.dataset.choices = key;
  select.replaceChildren(...choices.map(([choice, text]) => h("option", { value: choice }, text)));
  if (isExtra || choices.some(([choice]) => String(choice) === value)) setValue(name, value);
  return true;
}

/** Sets a field. A select gets values that it does not offer, such as those of an earlier job. */
function setValue(name, value) {
  const field = fields()[name];
  const text = String(value ?? "");
  if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === text)) {
    const label = { size: sizeText, cache: cacheText, num_frames: (count) => `${count} frames` }[name] ?? String;
    field.append(h("option", { value: text, "data-extra": "" }, label(text)));
  }
  field.value = text;
  pair(field);
}

/** A number and its slider show the same. */
function pair(field) {
  if (field.dataset?.pair) fields()[field.dataset.pair].value = field.value;
  const range = field.name && form.querySelector(`[data-pair="${field.name}"]`);
  if (range) range.value = field.value;
}

function syncKind() {
  const isImage = fields().kind.value === "image";
  $("length-field").hidden = isImage;
  $("given").disabled = isImage;
  form.querySelector('label[for="prompt"]').textContent = isImage ? "Describe the image" : "Describe the video";
  fields().seed.disabled = fields().seed_mode.value !== "fixed";
}

function showExamples(prompts) {
  const key = JSON.stringify(prompts);
  if ($("examples").dataset.prompts === key) return;
  $("examples").dataset.prompts = key;
  $("examples").replaceChildren(
    ...prompts.map((prompt) =>
      button(prompt, null, () => {
        fields().prompt.value = prompt;
        clearError("prompt");
        fields().prompt.focus();
        changed();
      }, { class: "chip" }),
    ),
  );
}

/** Says what differs from the defaults while the advanced settings are closed. */
function showSummary() {
  const values = fields();
  const parts = [
    values.seed_mode.value === "fixed" && `seed ${values.seed.value}`,
    Number(values.guidance_scale.value) !== defaults.guidance_scale && `guidance ${values.guidance_scale.value}`,
    values.sampler.value !== defaults.sampler && samplerText(values.sampler.value),
    values.cache.value && cacheText(values.cache.value),
    ...chosenLoras().map((lora) => lora.name),
  ];
  $("advanced-summary").textContent = parts.filter(Boolean).join(" · ");
}

/** The body of a request, for the values of the form. */
export function requestBody() {
  const values = fields();
  const isImage = values.kind.value === "image";
  const body = { prompt: values.prompt.value.trim(), negative_prompt: values.negative_prompt.value };
  for (const name of ["size", "sampler"]) body[name] = values[name].value;
  for (const name of NUMBERS) if (values[name].value !== "") body[name] = Number(values[name].value);
  if (values.model.options.length > 1) body.model = values.model.value;
  if (isImage) body.num_frames = 1;
  body.cache = values.cache.value || null;
  body.seed = values.seed_mode.value === "fixed" ? Number(values.seed.value) : null;
  body.loras = chosenLoras();
  body.frames = isImage ? [] : givenFrames();
  return body;
}

/** Gives the form the settings of a job. */
export function useSettings(job) {
  const values = fields();
  values.kind.value = job.kind;
  setFramesOf(job);
  setLoras(job.loras);
  applyModel();
  for (const name of ["prompt", "negative_prompt", "size", "steps", "guidance_scale", "sampler", "cache", "fps", "priority"]) {
    setValue(name, job[name]);
  }
  if (job.kind === "video") setValue("num_frames", job.num_frames);
  setValue("seed", job.seed);
  values.seed_mode.value = "fixed";
  changed();
  focusPrompt();
}

export function setPrompt(text) {
  fields().prompt.value = text;
  changed();
  focusPrompt();
}

export function focusPrompt() {
  fields().prompt.scrollIntoView({ block: "nearest" });
  fields().prompt.focus();
}

function save() {
  if (!defaults) return;
  const values = Object.fromEntries([...new FormData(form)].filter(([name]) => name));
  values.seed = fields().seed.value; // of a disabled field
  remember("sessionStorage", "form", { values, frames: savedFrames(), loras: chosenLoras(), open: $("advanced").open });
}

function restore() {
  const saved = recall("sessionStorage", "form");
  if (!saved) return;
  setFrames(saved.frames ?? []);
  setLoras(saved.loras ?? []);
  applyModel();
  for (const [name, value] of Object.entries(saved.values ?? {})) {
    const field = fields()[name];
    if (field instanceof RadioNodeList) field.value = value;
    else if (field) setValue(name, value);
  }
  $("advanced").open = Boolean(saved.open);
  renderFrames();
}

/** Shows an error at the field that it is about; false if there is no such field. */
export function showFieldError(name, message) {
  const place = form.querySelector(`[data-error-of="${CSS.escape(name ?? "")}"]`);
  if (!place) return false;
  place.textContent = message;
  place.hidden = false;
  if (place.closest("details")) place.closest("details").open = true;
  const field = fields()[name];
  if (field instanceof HTMLElement) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
  place.scrollIntoView({ block: "nearest" });
  return true;
}

function clearError(name) {
  for (const place of form.querySelectorAll(`[data-error-of="${CSS.escape(name ?? "")}"], #form-error`)) {
    place.hidden = true;
  }
  const field = fields()[name];
  if (field instanceof HTMLElement) field.removeAttribute("aria-invalid");
}

export function clearErrors() {
  for (const place of form.querySelectorAll(".field-error")) place.hidden = true;
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}
