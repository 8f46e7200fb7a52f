// Keys that work everywhere on the page.

import { $ } from "./dom.js";
import { showShortcuts } from "./dialogs.js";
import { submit } from "./submit.js";
import { clearPicks, state } from "./state.js";

const isTyping = (element) => element.closest("textarea, select, [contenteditable], input:not([type=radio], [type=range], [type=checkbox])") !== null;

export function startKeys() {
  $("show-shortcuts").addEventListener("click", showShortcuts);
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
    } else if (event.key === "Escape") escape(event);
    else if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    else if (event.key === "/") {
      event.preventDefault();
      $("search").focus();
      $("search").select();
    } else if (event.key === "?") showShortcuts();
  });
}

function escape(event) {
  if (event.target === $("search") && $("search").value) {
    $("search").value = "";
    $("search").dispatchEvent(new Event("input"));
  } else if (state.picks.length) clearPicks();
  else if (isTyping(event.target)) event.target.blur();
}
