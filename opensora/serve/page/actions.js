// What can be done with a video.

import * as api from "./api.js";
import { announce, h, toast } from "./dom.js";
import { confirm, copyText } from "./dialogs.js";
import { setPrompt } from "./form.js";
import { useVideo } from "./frames.js";
import { putJob, removeJob } from "./state.js";

/** Runs an action and shows its error; 401 asks for the token elsewhere. */
async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (error.status !== 401) toast(error.message);
    return null;
  }
}

export function cancel(job) {
  return attempt(async () => {
    const asked = performance.now();
    putJob(await api.cancelVideo(job.id), asked);
    announce("Cancelled");
  });
}

/** Removes a job after a question; true if it is gone. */
export async function remove(job) {
  const what = job.kind === "image" ? "image" : "video";
  const sure = await confirm(
    `Delete this ${what}?`,
    "Delete",
    h("p", { class: "quote" }, job.prompt),
    h("p", {}, "Its files are removed from the service. This cannot be undone."),
  );
  if (!sure) return false;
  const gone = await attempt(() => api.deleteVideo(job.id));
  if (!gone) return false;
  removeJob(job.id);
  toast("Deleted");
  return true;
}

export async function copyCommand(job) {
  const command = await attempt(() => api.commandOf(job.id));
  if (command) await copyText(command, "Command line");
}

/** Puts a video into the form: to continue it, or its last frame as the first one. */
export function startFrom(job, use) {
  useVideo(job, use);
  setPrompt(job.prompt);
  announce(use === "continue" ? "The new video continues this one" : "The new video starts with the last frame");
}
