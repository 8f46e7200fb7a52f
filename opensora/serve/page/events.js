// The connection to the service: its events, and what happens when it is lost.

import * as api from "./api.js";
import { askForToken } from "./token.js";
import { putJob, removeJob, setConnection, setService, state, unfinished, unheardSince } from "./state.js";

const PAUSES = [500, 1000, 2000, 3000]; // milliseconds between attempts; the last one repeats
const HIDDEN_MS = 30_000; // browsers allow six connections to a service: pages that nobody sees give theirs back
const LATE_MS = 1500; // after which the service has sent all unfinished jobs

let source = null;
let failures = 0;
let timer = 0;
let asking = false;
let onOpen = () => {};

/** Keeps the page connected; calls `opened` after each connection, to fetch what it has missed. */
export function connect(opened) {
  onOpen = opened;
  api.whenRefused(signIn);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && source === null) attempt();
    if (document.hidden) setTimeout(restWhileHidden, HIDDEN_MS);
  });
  // Browsers keep pages that were left for the way back, with their connections, of which there are few.
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && retryNow());
  addEventListener("online", retryNow);
  return attempt();
}

export function retryNow() {
  if (source === null) attempt();
}

async function attempt() {
  clearTimeout(timer);
  if (asking) return;
  try {
    setService(await api.service());
  } catch (error) {
    if (error.status !== 401) retryLater();
    return;
  }
  listen();
}

async function signIn() {
  if (asking) return;
  asking = true;
  close();
  await askForToken();
  asking = false;
  attempt();
}

function close() {
  source?.close();
  source = null;
}

function retryLater() {
  close();
  setConnection("lost");
  clearTimeout(timer);
  timer = setTimeout(attempt, PAUSES[Math.min(failures++, PAUSES.length - 1)]);
}

function listen() {
  close();
  const started = performance.now();
  const mine = (source = new EventSource(api.eventsUrl));
  const receive = (name, handle) => mine.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  receive("job", putJob);
  receive("deleted", ({ id }) => removeJob(id));
  receive("service", setService);
  mine.onopen = () => {
    failures = 0;
    setConnection("open");
    onOpen();
    setTimeout(() => mine === source && refreshUnheard(started), LATE_MS);
  };
  // Its own reconnection cannot tell a missing token from a missing service.
  mine.onerror = () => mine === source && retryLater();
}

/** Jobs that ended or were removed while the page was not connected are not among the first events. */
async function refreshUnheard(moment) {
  for (const job of unheardSince(moment)) await refresh(job.id);
}

/** Fetches a job that the page may not know, or not know well; null if it is not there. */
export async function refresh(id) {
  const asked = performance.now();
  try {
    putJob(await api.getVideo(id), asked);
  } catch (error) {
    if (error.status === 404) removeJob(id);
  }
  return state.jobs.get(id) ?? null;
}

function restWhileHidden() {
  if (!document.hidden || source === null) return;
  if (unfinished().length) setTimeout(restWhileHidden, HIDDEN_MS); // the title shows the progress
  else close();
}
