// Asks for the token of a service that has one.

import * as api from "./api.js";
import { h } from "./dom.js";
import { openDialog } from "./dialogs.js";

/** Resolves when the service has accepted a token; the cookie that it sets belongs to this browser. */
export function askForToken() {
  return new Promise((resolve) => {
    const field = h("input", {
      type: "password",
      id: "token",
      autocomplete: "current-password",
      required: true,
      autofocus: true,
      "aria-describedby": "token-error",
    });
    const error = h("p", { class: "field-error", id: "token-error", role: "alert", hidden: true });
    const submit = h("button", { type: "submit", class: "primary" }, "Sign in");
    let accepted = false;

    async function signIn(event) {
      event.preventDefault();
      submit.disabled = true;
      error.hidden = true;
      try {
        await api.signIn(field.value.trim());
        accepted = true;
        dialog.close();
      } catch (found) {
        error.textContent = found.status === 401 ? "This is not the token of the service." : found.message;
        error.hidden = false;
        field.select();
      } finally {
        submit.disabled = false;
      }
    }

    const form = h(
      "form",
      { class: "field", onsubmit: signIn },
      h("p", {}, "Whoever started the service has set it, with --token or OPENSORA_TOKEN."),
      h("label", { for: "token" }, "Token"),
      field,
      error,
      h("div", { class: "dialog-foot" }, submit),
    );
    const dialog = openDialog("This service needs a token", "token", () => accepted && resolve(), form);
    dialog.querySelector(".dialog-head button").remove(); // nothing works without it
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    // Browsers close a dialog on a second Esc in spite of that.
    dialog.addEventListener("close", () => accepted || resolve(askForToken()));
  });
}
