// The screen on which an item is judged: buttons and keys, details of the vote, drafts, undo.

import { wireDetails } from "./details.js";
import { toggleDifferences } from "./differences.js";
import { dropDraft, itemOf, keepDraft, keptDraft } from "./drafts.js";
import { Editing } from "./editing.js";
import { dress } from "./elements.js";
import { toggleFolding, wireFolding } from "./folding.js";
import { alertUser, announce, at, clearAlert, nextScreen, sourceOf, wireButton } from "./frame.js";
import { listenForKeys } from "./keys.js";
import { Ranking } from "./ranking.js";
import { newKey, post } from "./requests.js";
import { seconds, startAt } from "./timer.js";
import { leave, undo } from "./undo.js";

const SETTLED_MS = 250; // a key pressed twice, or a second tap, must not judge the next item, too
const { kind, token } = document.body.dataset;
const cards = [...document.querySelectorAll(".answer[data-id]")];
const item = itemOf(cards.map((card) => card.dataset.id));
const letters = new Map(cards.map((card) => [card.dataset.id, card.dataset.letter]));
const choices = [...document.querySelectorAll("[data-choice]")];

let isSent = false;
const details = wireDetails(() => save());
const editing = kind === "rewrite" ? { id: null, said: {} } : new Editing(cards, () => save());
const ranking = kind === "rank" ? new Ranking(at("ranking"), letters, rankingChanged) : null;

function draft() {
  return {
    ...details.said(),
    ...editing.said,
    ...(kind === "rewrite" ? { text: at("rewritten").value } : {}),
    ...(ranking ? { ranking: ranking.groups } : {}),
    seconds: seconds(),
  };
}

function save() {
  if (!isSent) keepDraft(item, draft());
}

/** Whether an editor is open, whose text is in no draft; says so. */
function isEditing() {
  const found = document.querySelector(".editor") !== null;
  if (found) alertUser("Keep the edit or discard it first.");
  return found;
}

function takeBack() {
  if (isEditing()) return;
  save();
  undo(() => { isSent = true; }); // of this item, too, what is kept from now on is the vote that was taken back
}

function restore() {
  const kept = keptDraft(item);
  if (!kept) return;
  startAt(kept.seconds);
  details.restore(kept);
  if (kind === "rewrite") {
    if (typeof kept.text === "string") at("rewritten").value = kept.text;
  } else if (kept.text_of) editing.restore(kept.text_of, kept.text);
  ranking?.set(kept.ranking ?? []);
  for (const button of choices) button.classList.toggle("before", button.dataset.choice === kept.choice);
  if (kept.choice) announce("The last vote was taken back.");
}

/** Send the vote, and go on to the next task once it is on the server's disk. */
async function vote(choice, more = {}) {
  if (isSent || !document.body.dataset.ready) return;
  if (isEditing()) return;
  save();
  isSent = true;
  clearAlert();
  document.body.classList.add("sending");
  for (const element of [...choices, ...cards]) {
    element.classList.toggle("chosen", element.dataset.choice === choice || element.dataset.id === choice);
  }
  const ballot = { ...ballotOf(choice), ...more, seconds: Math.min(seconds(), 86400) };
  try {
    await post("/api/vote", { token, key: newKey(), choice, ...ballot });
    dropDraft(item);
    nextScreen();
  } catch (problem) {
    isSent = false;
    document.body.classList.remove("sending");
    for (const element of [...choices, ...cards]) element.classList.remove("chosen");
    alertUser(problem.message);
    if (problem.status === 401 || problem.status === 409) setTimeout(nextScreen, 2500);
  }
}

function ballotOf(choice) {
  const said = details.said();
  if (choice === "skip") return { note: said.note };
  if (!letters.has(choice)) said.strength = null;
  return { ...said, ...editing.said };
}

function rankingChanged() {
  at("send-ranking").disabled = !ranking.isComplete;
  for (const card of cards) {
    const place = ranking.groups.findIndex((group) => group.includes(card.dataset.id));
    const mark = card.querySelector(".place");
    mark.hidden = place < 0;
    mark.textContent = place < 0 ? "" : `place ${place + 1}`;
  }
  save();
}

function sendRanking() {
  if (ranking.isComplete) vote("ranked", { ranking: ranking.groups });
  else alertUser("Rank all answers first, or skip.");
}

function sendRewritten() {
  const [card] = cards;
  const text = at("rewritten").value;
  if (text === original(card)) alertUser("Your version is the same as the answer. Change it, or skip.");
  else if (!text.trim()) alertUser("Your version is empty. Write it, or skip.");
  else vote("rewritten", { text, text_of: card.dataset.id });
}

function original(card) {
  return sourceOf(card.querySelector(".text")).replace(/\r\n?/g, "\n");
}

function wireRewriting() {
  const area = at("rewritten");
  const over = at("start-over");
  const fit = () => {
    over.hidden = area.value === original(cards[0]);
    area.style.height = "auto";
    area.style.height = `${Math.min(Math.max(area.scrollHeight + 4, 160), window.innerHeight * 0.7)}px`;
  };
  area.value = original(cards[0]);
  area.addEventListener("input", () => { fit(); save(); });
  over.addEventListener("click", () => { area.value = original(cards[0]); fit(); save(); area.focus(); });
  at("send-rewritten").addEventListener("click", sendRewritten);
  return fit;
}

async function pause() {
  if (isEditing()) return;
  try {
    save();
    await post("/api/pause", { paused: true });
    nextScreen();
  } catch (problem) {
    alertUser(problem.message);
  }
}

function openDialog(id) {
  const dialog = at(id);
  if (dialog && !dialog.open) dialog.showModal();
}

/** The instructions open by themselves once in a browser, and again where they have changed. */
function showNewInstructions() {
  const dialog = at("instructions");
  if (!dialog) return;
  const text = sourceOf(dialog.querySelector(".text"));
  try {
    if (localStorage.getItem("prefine-instructions") === text) return;
    localStorage.setItem("prefine-instructions", text);
  } catch {
    return;
  }
  dialog.showModal();
}

function editOne(keys) {
  if (kind === "rewrite") return;
  if (cards.length === 1) editing.open(cards[0]);
  else {
    alertUser(`Edit which answer? Press ${[...letters.values()].join(" or ")}.`);
    keys.once((name) => {
      clearAlert();
      const card = cards.find((each) => each.dataset.letter.toLowerCase() === name);
      if (card) editing.open(card);
      return card !== undefined;
    });
  }
}

const first = cards[0].dataset.id;
const second = cards[1]?.dataset.id;
const pressable = (choice) => () => choices.find((button) => button.dataset.choice === choice)?.click();
const ofKind = {
  compare: {
    a: pressable(first), ArrowLeft: pressable(first), b: pressable(second), ArrowRight: pressable(second),
    t: pressable("tie"), "=": pressable("tie"), x: pressable("both_bad"), d: () => toggleDifferences(token, cards, editing),
    1: () => details.strength("1"), 2: () => details.strength("2"), 3: () => details.strength("3"),
  },
  rank: {
    ...Object.fromEntries([...letters.values()].map((letter) => [letter.toLowerCase(), () => ranking.type(letter.toLowerCase())])),
    "=": () => ranking.typeTie(), Backspace: () => ranking.removeLast(), Enter: sendRanking,
  },
  thumb: { g: pressable("up"), "+": pressable("up"), b: pressable("down"), "-": pressable("down") },
  rewrite: { Enter: () => at("rewritten").focus() },
}[kind];

const keys = listenForKeys({
  ...ofKind,
  s: pressable("skip"),
  u: takeBack,
  n: () => details.note(),
  k: () => details.criteria(keys, letters),
  o: () => details.toggle(),
  f: toggleFolding,
  e: () => editOne(keys),
  i: () => openDialog("instructions"),
  "?": () => openDialog("keys"),
  p: pause,
}, { undo: takeBack, commit: kind === "rewrite" ? sendRewritten : () => {} });

for (const button of choices) {
  if (button.dataset.icon) {
    const key = button.querySelector("kbd");
    dress(button, button.dataset.icon, button.dataset.text);
    button.append(key);
  }
  button.addEventListener("click", () => vote(button.dataset.choice));
}
at("send-ranking")?.addEventListener("click", sendRanking);
at("leave").addEventListener("click", leave);
wireButton("undo", "undo", takeBack);
wireButton("pause", "pause", pause);
wireButton("open-keys", "keys", () => openDialog("keys"));
wireButton("open-instructions", "instructions", () => openDialog("instructions"));
wireButton("toggle-options", "details", () => details.toggle(), "Details");
wireButton("differences", "differences", () => toggleDifferences(token, cards, editing), "Differences");
const fit = kind === "rewrite" ? wireRewriting() : () => {};
restore();
fit();
if (ranking) rankingChanged();
wireFolding();
window.addEventListener("pagehide", save);
showNewInstructions();
setTimeout(() => { document.body.dataset.ready = "yes"; }, SETTLED_MS);
