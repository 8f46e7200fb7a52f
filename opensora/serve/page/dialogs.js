// Dialogs. The browser keeps the focus inside and gives it back, and closes them on Esc.

import { button, h, iconButton, toast } from "./dom.js";

let count = 0;

/** Opens a dialog with a heading; it is removed when closed. Returns it. */
export function openDialog(title, className, onClose, ...children) {
  const id = `dialog-${++count}`;
  const back = document.activeElement;
  const dialog = h(
    "dialog",
    { class: className, "aria-labelledby": id },
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id }, title),
      iconButton("Close", "close", () => dialog.close(), { class: "quiet icon-only small" }),
    ),
    ...children,
  );
  dialog.addEventListener("click", (event) => event.target === dialog && isOutside(event, dialog) && dialog.close());
  dialog.addEventListener("close", () => {
    const toastElement = dialog.querySelector(".toast");
    if (toastElement) document.body.append(toastElement);
    dialog.remove();
    if (back?.isConnected) back.focus({ preventScroll: true });
    onClose?.(dialog.returnValue);
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function isOutside(event, dialog) {
  const box = dialog.getBoundingClientRect();
  const { clientX: x, clientY: y } = event;
  // Enter in a form clicks its button at (0, 0).
  return event.detail > 0 && (x < box.left || x > box.right || y < box.top || y > box.bottom);
}

/** Asks a question; true if the answer is yes. The focus starts on no. */
export function confirm(title, action, ...children) {
  return new Promise((resolve) => {
    const no = button("Keep it", null, () => dialog.close(), { class: "secondary", autofocus: true });
    const yes = button(action, null, () => dialog.close("yes"), { class: "primary danger" });
    const foot = h("div", { class: "dialog-foot" }, no, yes);
    const dialog = openDialog(title, "confirm", (answer) => resolve(answer === "yes"), ...children, foot);
  });
}

/** Copies a text, or shows it for copying where the page may not: outside of HTTPS and localhost. */
export async function copyText(text, title) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${title} copied`);
  } catch {
    const area = h("textarea", { readonly: true, rows: 8, "aria-label": title, autofocus: true, value: text });
    openDialog(title, "copy", null, h("p", {}, "Copy it from here:"), area);
    area.select();
  }
}

const SHORTCUTS = [
  [["Ctrl", "Enter"], "Generate"],
  [["/"], "Search"],
  [["←", "↑", "→", "↓"], "Move in the gallery"],
  [["Enter"], "Play the video"],
  [["C"], "Choose the video for a comparison"],
  [["Esc"], "Close what is open"],
  [["?"], "Show this list"],
];

export function showShortcuts() {
  const rows = SHORTCUTS.map(([keys, what]) => [h("dt", {}, keys.map((key) => h("kbd", {}, key))), h("dd", {}, what)]);
  openDialog("Keyboard shortcuts", "shortcuts", null, h("dl", {}, rows.flat()));
}
