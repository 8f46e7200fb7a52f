// Light, dark, or that of the system.

import { $, icon, announce } from "./dom.js";

const THEMES = [
  ["", "system", "Theme: as the system"],
  ["light", "sun", "Theme: light"],
  ["dark", "moon", "Theme: dark"],
];

function show() {
  const [, name, label] = THEMES.find(([theme]) => theme === (document.documentElement.dataset.theme ?? "")) ?? THEMES[0];
  $("theme").replaceChildren(icon(name));
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
  return label;
}

function apply(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  return show();
}

function next() {
  const now = THEMES.findIndex(([theme]) => theme === (document.documentElement.dataset.theme ?? ""));
  const [theme] = THEMES[(now + 1) % THEMES.length];
  announce(apply(theme));
  try {
    localStorage.setItem("theme", theme); // read by first_theme.js
  } catch {
    // It then lasts until the page is closed.
  }
}

export function startTheme() {
  $("theme").addEventListener("click", next);
  addEventListener("storage", (event) => event.key === "theme" && apply(event.newValue ?? ""));
  show();
}
