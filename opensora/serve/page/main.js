// Starts the parts of the page and connects it to the service.

import { startCompare } from "./compare.js";
import { connect, refresh } from "./events.js";
import { startForm } from "./form.js";
import { load, newest, startGallery } from "./gallery.js";
import { startKeys } from "./keys.js";
import { $, bringIntoView } from "./dom.js";
import { startQueue } from "./queue.js";
import { showStage, startStage } from "./stage.js";
import { on, select, state, unfinished } from "./state.js";
import { startStatus } from "./status.js";
import { estimateSoon, startSubmitting } from "./submit.js";
import { startTheme } from "./theme.js";

const wanted = () => location.hash.slice(1);

/** Shows the video that the address names. */
async function followAddress() {
  const id = wanted();
  if (!id.startsWith("video_")) return;
  if (!state.jobs.has(id) && !(await refresh(encodeURIComponent(id)))) return;
  select(id);
}

on("selected", (id) => {
  if (wanted() !== (id ?? "")) history.replaceState(null, "", id ? `#${id}` : location.pathname);
});
on("removed", (id) => id === state.selected && select(newest()));
on("connection", (connection) => connection === "open" && estimateSoon());
addEventListener("hashchange", followAddress);
document.addEventListener("click", (event) => {
  if (event.target.closest('a[href^="#video_"]')) bringIntoView($("stage")); // also of the video that is shown
});
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the video
  $("prompt").focus();
});

startTheme();
startStatus();
startForm(estimateSoon);
startSubmitting();
startStage();
startQueue();
startGallery();
startCompare();
startKeys();
connect(async () => {
  await load({ keep: true });
  if (state.selected) await refresh(state.selected);
  else await followAddress();
  if (!state.selected) select(unfinished()[0]?.id ?? newest());
  showStage();
});
