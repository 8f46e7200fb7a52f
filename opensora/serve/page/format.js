// Numbers and times as people read them.

export function duration(seconds) {
  if (seconds < 1) return `${Math.max(0.1, seconds).toFixed(1)} s`;
  if (seconds < 10) return `${+seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(count) {
  if (count < 1e6) return `${Math.round(count / 1e3)} KB`;
  return count < 1e9 ? `${Math.round(count / 1e6)} MB` : `${(count / 1e9).toFixed(1)} GB`;
}

/** A size as in 64x64, as 64 × 64. */
export const sizeText = (size) => size.replace("x", " × ");

export const lengthText = (job) => (job.kind === "image" ? "Image" : duration(job.seconds));

export function ago(time) {
  const seconds = Date.now() / 1000 - time;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(time * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

/** Videos of at most this many pixels a side are enlarged without smoothing. */
export const isSmall = (size) => Math.max(...size.split("x").map(Number)) <= 256;

/** A message of the service as a sentence; names of fields and flags stay as they are. */
export const sentence = (text) => (/^[a-z]+[ ,]/.test(text) ? text[0].toUpperCase() + text.slice(1) : text);

const CACHES = { easy: "EasyCache", first_block: "First block" };

export function cacheText(cache) {
  if (!cache) return "Off";
  const [name, threshold] = cache.split(":");
  return (CACHES[name] ?? name) + (threshold ? ` ${threshold}` : "");
}

/** EulerAncestralDiscrete as Euler ancestral discrete; short names such as DDIM stay. */
export function samplerText(name) {
  const words = name.replace(/([a-z0-9])([A-Z])/g, "$1 $2").split(" ");
  return words.map((word, i) => (i === 0 || /^[A-Z]{2}/.test(word) ? word : word.toLowerCase())).join(" ");
}

const STAGES = { load: "Loading the model", encode: "Reading the prompt", denoise: "Denoising", decode: "Decoding" };

/** What happens with a job that has not ended, and how long it takes. */
export function stageText(job) {
  if (job.status === "queued") return job.position > 1 ? `Number ${job.position} in the queue` : "Next in the queue";
  if (job.stage === "denoise" && job.step) return `Step ${job.step} of ${job.steps}`;
  return STAGES[job.stage] ?? "Starting";
}

export function leftText(job) {
  if (job.stage !== "denoise" || job.seconds_left === null) return "";
  return `${duration(job.seconds_left)} left`;
}

/** Where in a video a given frame is. */
export function placeText(frame) {
  if (frame.frame === undefined || frame.frame === null) return "continued";
  if (frame.frame === 0) return "first frame";
  return frame.frame === -1 ? "last frame" : `frame ${frame.frame}`;
}
