// What stands around the conversation: models, settings, colours, the API key, messages for people.

import { wireTheme } from "./colours.js";
import { dress, make } from "./elements.js";
import { change, settings } from "./settings.js";

const ALERT_MS = 8000;

export const at = (id) => document.getElementById(id);

/** Say something to those who cannot see the page. */
export function announce(text) {
  at("status").textContent = text;
}

let alertEnds = 0;

/** Show a problem for a while. */
export function alertUser(text) {
  const box = at("alert");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(alertEnds);
  alertEnds = setTimeout(() => { box.hidden = true; }, ALERT_MS);
}

/** The dialog of settings. */
export function wireSettings() {
  at("system").value = settings.system;
  at("longest").value = settings.longest ?? "";
  const showTemperature = () => { at("temperature-shown").textContent = Number(at("temperature").value).toFixed(2); };
  at("temperature").value = String(settings.temperature);
  showTemperature();
  at("system").addEventListener("input", () => change({ system: at("system").value }));
  at("temperature").addEventListener("input", () => {
    change({ temperature: Number(at("temperature").value) });
    showTemperature();
  });
  at("longest").addEventListener("input", () => {
    const number = Number.parseInt(at("longest").value, 10);
    change({ longest: number > 0 ? number : null });
  });
  at("open-settings").addEventListener("click", () => at("settings").showModal());
}

/** The buttons of the header and of the composer. */
export function wireTools(newConversation) {
  dress(at("send"), "send");
  dress(at("stop"), "stop");
  dress(at("to-latest"), "latest");
  dress(at("compare"), "compare", "Compare");
  dress(at("new-chat"), "plus", "New");
  dress(at("open-settings"), "settings");
  wireTheme(at("theme"));
  const labels = {
    send: "Send",
    stop: "Stop",
    "to-latest": "To the latest answer",
    compare: "Compare two models side by side",
    "new-chat": "New conversation",
    "open-settings": "Settings",
  };
  for (const [id, label] of Object.entries(labels)) name(at(id), label);
  at("new-chat").addEventListener("click", newConversation);
  at("compare").addEventListener("click", () => {
    change({ compare: !settings.compare });
    showCompare();
  });
  showCompare();
  for (const [id, setting] of [["model", "model"], ["second-model", "second"]]) {
    at(id).addEventListener("change", () => change({ [setting]: at(id).value }));
  }
}

function name(button, label) {
  button.title = label;
  button.setAttribute("aria-label", label);
}

function showCompare() {
  at("second-model").hidden = !settings.compare;
  at("compare").setAttribute("aria-pressed", String(settings.compare));
  document.body.classList.toggle("comparing", settings.compare);
}

/** Offer the models, and choose those of last time. */
export function fillModels(models) {
  for (const [id, chosen, usual] of [["model", settings.model, 0], ["second-model", settings.second, models.length - 1]]) {
    at(id).replaceChildren(...models.map((model) => make("option", { value: model }, model)));
    at(id).value = models.includes(chosen) ? chosen : models[usual] ?? "";
  }
  at("empty-model").textContent = models.length ? "" : "This server has no model to chat with.";
}

/** Say what stays here and what the server keeps. */
export function showPrivacy(feedback) {
  const days = feedback.retention_days;
  const stored = feedback.stores_texts
    ? `This server stores what is asked and answered${days ? ` for ${days} days` : ""}, to learn from your feedback.`
    : "The server stores no texts.";
  at("privacy").textContent = `This page keeps the conversation in this tab until you close it. ${stored}`;
  at("settings-privacy").textContent = feedback.enabled
    ? `Thumbs are stored at the server. ${stored}`
    : `This server takes no feedback. ${stored}`;
}

/** Ask for the API key; null if there is none to give. */
export function askKey(wasWrong) {
  const dialog = at("key-dialog");
  if (wasWrong) at("key-why").textContent = "That is not the key. This server asks for its API key; it stays in this tab.";
  at("key").value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  at("no-key").onclick = () => dialog.close("cancel");
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? at("key").value.trim() : null), { once: true });
  });
}

