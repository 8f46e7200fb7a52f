// What the page knows: the service, the jobs, which one is selected. Modules listen to its changes.

const listeners = new Map();

export const state = {
  service: null,
  connection: "connecting", // or "open", "lost"
  jobs: new Map(),
  selected: null,
  picks: [], // videos to compare, at most two
};

const heard = new Map(); // id -> when its latest state came

export function on(topic, listener) {
  if (!listeners.has(topic)) listeners.set(topic, []);
  listeners.get(topic).push(listener);
}

function emit(topic, value) {
  for (const listener of listeners.get(topic) ?? []) listener(value);
}

export const isFinal = (job) => ["completed", "failed", "cancelled"].includes(job.status);

/** Takes a state of a job, unless a later one came since the request for this one was sent. */
export function putJob(job, asked = Infinity) {
  if ((heard.get(job.id) ?? 0) > asked) return;
  heard.set(job.id, performance.now());
  const before = state.jobs.get(job.id);
  state.jobs.set(job.id, job);
  emit("job", { job, before });
}

export function removeJob(id) {
  heard.set(id, performance.now());
  if (!state.jobs.delete(id)) return;
  if (state.picks.includes(id)) togglePick(id);
  emit("removed", id);
}

/** Unfinished jobs in the order in which they are made. */
export function unfinished() {
  const jobs = [...state.jobs.values()].filter((job) => !isFinal(job));
  return jobs.sort((a, b) => (a.position ?? 0) - (b.position ?? 0) || a.created_at - b.created_at);
}

/** The unfinished jobs of which nothing was heard since a moment: they may have ended meanwhile. */
export const unheardSince = (moment) => unfinished().filter((job) => heard.get(job.id) < moment);

export function setService(service) {
  const first = state.service === null;
  state.service = service;
  emit("service", { service, first });
}

export function setConnection(connection) {
  if (state.connection === connection) return;
  state.connection = connection;
  emit("connection", connection);
}

export function select(id) {
  if (state.selected === id) return;
  state.selected = id;
  emit("selected", id);
}

/** Chooses a video for the comparison, or takes it back. A third one replaces the first. */
export function togglePick(id) {
  const job = state.jobs.get(id);
  if (state.picks.includes(id)) state.picks = state.picks.filter((other) => other !== id);
  else if (job?.status === "completed" && job.kind === "video") state.picks = [...state.picks, id].slice(-2);
  emit("picks", state.picks);
}

export function clearPicks() {
  state.picks = [];
  emit("picks", state.picks);
}

/** The model that a request uses. */
export function modelFor(takesFrames, id = null) {
  const task = takesFrames ? "image-to-video" : "text-to-video";
  const models = state.service?.models.filter((model) => model.task === task) ?? [];
  return models.find((model) => model.id === id) ?? models[0] ?? null;
}
