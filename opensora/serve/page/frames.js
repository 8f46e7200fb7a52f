// The images and clips that a video starts from: choosing them, and where in the video they are.

import * as api from "./api.js";
import { $, announce, h, iconButton } from "./dom.js";
import { bytes, isSmall } from "./format.js";
import { state } from "./state.js";

const MOST = 4;
const CONTINUE = "continue";

/* {file or video: id, kind: "image" or "video", name, size, use: "continue", "first" or "last" of a clip,
    place: frame of the new video, -1 for the last; while it is sent also uploading: the promise, address: of a blob} */
let items = [];
let changed = () => {};

export function startFrames(onChange) {
  changed = onChange;
  $("choose-file").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    addFiles([...$("file").files]);
    $("file").value = "";
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    addFiles(files);
  });
  startDropping();
}

/** Files may be dropped anywhere on the page. */
function startDropping() {
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files") && !document.querySelector("dialog[open]");
  let depth = 0;
  addEventListener("dragenter", (event) => carriesFiles(event) && ($("drop-cover").hidden = ++depth < 1));
  addEventListener("dragleave", (event) => carriesFiles(event) && ($("drop-cover").hidden = --depth < 1));
  addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    depth = 0;
    $("drop-cover").hidden = true;
    if (!carriesFiles(event)) return;
    event.preventDefault();
    addFiles([...event.dataTransfer.files]);
  });
}

/** The `frames` of a request. */
export const givenFrames = () =>
  items
    .filter((item) => item.file || item.video)
    .map((item) => {
      const source = item.file ? { file: item.file } : { video: item.video };
      if (item.kind === "image") return { ...source, frame: item.place };
      if (item.use === CONTINUE) return source;
      return { ...source, source_frame: item.use === "last" ? -1 : 0, frame: item.place };
    });

export const savedFrames = () => items.filter((item) => item.file || item.video).map(({ uploading, address, ...rest }) => rest);
export const uploadsDone = () => Promise.all(items.map((item) => item.uploading));
export const isUploading = () => items.some((item) => item.uploading);

export function setFrames(saved) {
  items = saved.map((item) => ({ ...item }));
  render();
}

/** The frames of an earlier job, as it was asked for. */
export function setFramesOf(job) {
  setFrames(
    job.frames.map((frame) => {
      const source = frame.file ? { file: frame.file } : { video: frame.video };
      const continues = frame.frame === undefined || frame.frame === null;
      const ofClip = continues || frame.source_frame !== undefined || Boolean(frame.video);
      return {
        ...source,
        kind: ofClip ? "video" : "image",
        name: frame.file ? "Uploaded file" : "Earlier video",
        size: job.size,
        use: continues ? CONTINUE : frame.source_frame === -1 ? "last" : "first",
        place: frame.frame ?? 0,
      };
    }),
  );
}

/** An earlier result: a clip to continue, or its last frame as the first one. */
export function useVideo(job, use) {
  const kind = job.kind === "image" ? "image" : "video";
  items = [{ video: job.id, kind, name: job.prompt, size: job.size, use: kind === "image" ? "last" : use, place: 0 }];
  render();
  changed();
}

export function addFiles(files) {
  showProblem("");
  for (const file of files) {
    if (items.length >= MOST) return showProblem(`A video starts from at most ${MOST} images.`);
    const kind = file.type.split("/")[0];
    const most = state.service?.limits.max_upload_bytes ?? Infinity;
    if (kind !== "image" && kind !== "video") showProblem(`${file.name} is neither an image nor a video.`);
    else if (file.size > most) {
      showProblem(`${file.name} has ${bytes(file.size)}. This service takes up to ${bytes(most)}; make it smaller.`);
    } else add(file, kind);
  }
}

function add(file, kind) {
  const item = { kind, name: file.name, size: "", use: CONTINUE, place: freePlace(), address: URL.createObjectURL(file) };
  if (items.length) for (const other of [...items, item]) if (other.use === CONTINUE) other.use = "last";
  items.push(item);
  item.uploading = send(item, file);
  render();
  changed();
}

/** First, last, then in the middle of those that are there. */
function freePlace() {
  const taken = items.map((item) => item.place);
  const middle = Math.floor(frameCount() / 2);
  return [0, -1, middle, Math.floor(middle / 2), middle + 1].find((place) => !taken.includes(place));
}

async function send(item, file) {
  try {
    const found = await api.upload(file);
    Object.assign(item, { file: found.id, kind: found.kind, size: `${found.width}x${found.height}`, name: found.name });
    announce(`${found.name} is uploaded`);
  } catch (error) {
    items = items.filter((other) => other !== item);
    showProblem(`${file.name}: ${error.message}`);
  } finally {
    URL.revokeObjectURL(item.address);
    delete item.address;
    delete item.uploading;
    render();
    changed();
  }
}

export function showProblem(text) {
  $("frames-error").textContent = text;
  $("frames-error").hidden = !text;
}

const frameCount = () => Number($("num_frames").value) || 17;

function remove(item) {
  items = items.filter((other) => other !== item);
  showProblem("");
  render();
  changed();
  $("choose-file").focus();
}

export function render() {
  $("given-list").replaceChildren(...items.map(row));
  $("drop").toggleAttribute("data-busy", isUploading());
  $("drop").hidden = items.length >= MOST;
  $("choose-file").textContent = items.length ? "Add another" : "Choose a file";
}

function row(item) {
  const text = h("div", { class: "given-text" }, h("p", { class: "given-name", title: item.name }, item.name));
  if (item.uploading) text.append(h("p", { class: "given-name" }, "Uploading …"));
  else {
    if (item.kind === "video") text.append(useSelect(item));
    if (item.kind === "image" || item.use !== CONTINUE) text.append(placeControls(item));
  }
  return h(
    "li",
    { class: "given-item", "data-small": Boolean(item.size) && isSmall(item.size) },
    h("div", { class: "given-media" }, media(item)),
    text,
    iconButton(`Remove ${item.name}`, "close", () => remove(item), { class: "quiet icon-only small" }),
  );
}

/** A preview: the image, or the frame of the clip that is used. */
export function media(item) {
  const source = item.address ?? (item.file ? api.fileUrl(item.file) : api.contentUrl(item.video));
  if (item.kind === "image") return h("img", { src: source, alt: "", onerror: () => lost(item) });
  const video = h("video", { src: source, preload: "auto", playsinline: true, muted: true, tabindex: "-1", "aria-hidden": "true" });
  video.addEventListener("loadedmetadata", () => {
    if (item.use !== "first" && Number.isFinite(video.duration)) video.currentTime = Math.max(0, video.duration - 0.02);
  });
  video.addEventListener("error", () => lost(item));
  return video;
}

function lost(item) {
  if (!item.address && items.includes(item) && state.connection !== "lost") {
    items = items.filter((other) => other !== item);
    showProblem(`${item.name} is not there any more.`);
    render();
    changed();
  }
}

function useSelect(item) {
  const choices = [["first", "Use its first frame"], ["last", "Use its last frame"]];
  if (items.length === 1) choices.unshift([CONTINUE, "Continue the clip"]);
  return choice(choices, item.use, `How to use ${item.name}`, (value) => (item.use = value));
}

function placeControls(item) {
  const last = frameCount() - 1;
  if (item.place > last) item.place = last;
  const isNumber = item.place > 0;
  const select = choice(
    [["0", "As first frame"], ["-1", "As last frame"], ["n", "As frame …"]],
    isNumber ? "n" : String(item.place),
    `Place of ${item.name} in the video`,
    (value) => (item.place = value === "n" ? Math.floor(last / 2) || 1 : Number(value)),
  );
  const number = h("input", {
    type: "number", min: 1, max: last, value: item.place, "aria-label": `Frame number of ${item.name}`,
    onchange: (event) => {
      item.place = Math.min(last, Math.max(1, Math.round(Number(event.target.value)) || 1));
      event.target.value = item.place;
      changed();
    },
  });
  return h("div", { class: "given-place" }, select, isNumber && number);
}

function choice(choices, value, label, set) {
  const options = choices.map(([key, text]) => h("option", { value: key, selected: key === value }, text));
  const index = (event) => [...$("given-list").querySelectorAll("select")].indexOf(event.target);
  return h("select", {
    "aria-label": label,
    onchange: (event) => {
      const place = index(event);
      set(event.target.value);
      render();
      $("given-list").querySelectorAll("select")[place]?.focus();
      changed();
    },
  }, options);
}
