// The list of LoRAs with their scales.

import { $, h, iconButton } from "./dom.js";
import { state } from "./state.js";

const MOST = 8;
let changed = () => {};

export function startLoras(onChange) {
  changed = onChange;
  $("add-lora").addEventListener("click", () => {
    const row = addRow({ name: state.service.loras[0], scale: 1 });
    row.querySelector("select").focus();
    changed();
  });
}

export function offerLoras() {
  $("lora-field").hidden = !state.service.loras.length;
}

export const chosenLoras = () =>
  [...$("lora-list").children].map((row) => ({
    name: row.querySelector("select").value,
    scale: Number(row.querySelector("input").value),
  }));

export function setLoras(loras) {
  $("lora-list").replaceChildren();
  for (const lora of loras) if (state.service.loras.includes(lora.name)) addRow(lora);
  $("add-lora").hidden = $("lora-list").children.length >= MOST;
}

function addRow(lora) {
  const options = state.service.loras.map((name) => h("option", { value: name, selected: name === lora.name }, name));
  const row = h(
    "li",
    {},
    h("select", { "aria-label": "LoRA" }, options),
    h("input", { type: "number", min: -10, max: 10, step: "any", value: lora.scale, "aria-label": "Scale of the LoRA" }),
    iconButton("Remove the LoRA", "close", () => {
      row.remove();
      $("add-lora").hidden = false;
      $("add-lora").focus();
      changed();
    }, { class: "quiet icon-only small" }),
  );
  $("lora-list").append(row);
  $("add-lora").hidden = $("lora-list").children.length >= MOST;
  return row;
}
