// Small helpers for the document. Text from others only ever becomes text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element. Functions become listeners of events (onclick), true and false switch attributes. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "muted" || name === "value") element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const image = document.createElementNS(SVG, "svg");
  image.setAttribute("class", "icon");
  image.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `page/icons.svg#${name}`);
  image.append(use);
  return image;
}

export function button(label, name, onclick, attributes = {}) {
  return h("button", { type: "button", onclick, ...attributes }, name && icon(name), label);
}

/** A button that shows only an icon; its name is for screen readers and as a tooltip. */
export function iconButton(label, name, onclick, attributes = {}) {
  return h("button", { type: "button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

/** Says something to screen readers. */
export function announce(text) {
  $("live").textContent = "";
  // A live region reports changes: the same text again has to be a change.
  setTimeout(() => ($("live").textContent = text), 60);
}

let toastTimer = 0;

/** Shows a message for a moment, and says it to screen readers. */
export function toast(text) {
  // Inside an open dialog, because the rest of the page is behind it.
  (document.querySelector("dialog[open]") ?? document.body).append($("toast"));
  $("toast").textContent = text;
  $("toast").hidden = false;
  announce(text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 3500);
}

export const prefersLessMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Scrolls to an element, unless it starts in the upper half of the window. */
export function bringIntoView(element) {
  const { top } = element.getBoundingClientRect();
  if (top >= 0 && top <= innerHeight / 2) return;
  element.scrollIntoView({ behavior: prefersLessMotion() ? "auto" : "smooth", block: "start" });
}

/** Storage that may be forbidden or full: the page works without it. */
export function remember(storage, name, value) {
  try {
    if (value === null) window[storage].removeItem(name);
    else window[storage].setItem(name, JSON.stringify(value));
  } catch {
    // Nothing depends on it.
  }
}

export function recall(storage, name) {
  try {
    return JSON.parse(window[storage].getItem(name));
  } catch {
    return null;
  }
}
