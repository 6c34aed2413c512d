// The chat page: asks the models, draws what they write, and sends what people think of it.

import { ApiProblem, feedbackSettings, listModels, onMissingKey, sendFeedback, streamChat } from "./api.js";
import { canGoOn, isOpen, keep, kept, messagesFor, newTurn, newVersion, shown } from "./conversation.js";
import { alertUser, announce, askKey, at, fillModels, showPrivacy, wireSettings, wireTools } from "./frame.js";
import { settings } from "./settings.js";
import { TurnView } from "./turn_view.js";

const NEAR_THE_END = 80; // pixels

const turns = kept();
const views = new Map(); // turn -> TurnView
const running = new Map(); // version -> AbortController
let feedback = { enabled: false, stores_texts: false, retention_days: null };
let models = [];
let follows = true; // whether the page scrolls along with what is written

// ---- asking -------------------------------------------------------------------------------------------------------

const askedModels = () => (settings.compare ? [at("model").value, at("second-model").value] : [at("model").value]);

function ask(question) {
  at("alert").hidden = true;
  const turn = newTurn(question, askedModels());
  const before = turns[turns.length - 1];
  turns.push(turn);
  if (before) views.get(before)?.draw(); // it is no longer the last one
  addView(turn);
  follows = true;
  turn.slots.forEach((_, slot) => answer(turn, slot));
}

async function answer(turn, slotIndex) {
  const slot = turn.slots[slotIndex];
  const earlier = shown(slot);
  const version = newVersion();
  slot.versions.push(version);
  slot.shown = slot.versions.length - 1;
  const controller = new AbortController();
  running.set(version, controller);
  redraw(turn, slotIndex);
  showRunning();
  try {
    for await (const chunk of streamChat(requestFor(turn, slot.model), controller.signal)) {
      take(version, chunk);
      drawSoon(turn, slotIndex);
    }
    version.state = "done";
    // Whether the new answer is better shows later: if it is accepted (docs/feedback.md).
    if (earlier?.id && earlier.state === "done") tell({ completion_id: version.id, regenerates: earlier.id }, true);
  } catch (error) {
    version.state = error.name === "AbortError" ? "stopped" : "failed";
    if (version.state === "failed") version.error = messageOf(error);
  }
  running.delete(version);
  turn.slots.forEach((_, at) => redraw(turn, at)); // the other answer can be compared now
  showRunning();
  keep(turns);
}

function requestFor(turn, model) {
  const messages = messagesFor(turns, turns.indexOf(turn), settings.system);
  const request = { model, messages, temperature: settings.temperature };
  return settings.longest ? { ...request, max_completion_tokens: settings.longest } : request;
}

function take(version, chunk) {
  version.id = chunk.id ?? version.id;
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) {
    version.text += choice.delta.content;
    version.state = "writing";
  }
  if (choice?.finish_reason) version.finish = choice.finish_reason;
  if (chunk.usage) version.tokens = chunk.usage.completion_tokens;
}

function stopAll() {
  for (const controller of running.values()) controller.abort();
}

function messageOf(error) {
  if (error instanceof ApiProblem) return error.message;
  console.error(error);
  return "Something went wrong on this page.";
}

// ---- what the buttons of a turn do --------------------------------------------------------------------------------

const actions = {
  isLast: (turn) => turns[turns.length - 1] === turn,

  resubmit(turn, text) {
    stopAll();
    for (const gone of turns.splice(turns.indexOf(turn))) {
      views.get(gone)?.element.remove();
      views.delete(gone);
    }
    ask(text);
  },

  regenerate(turn, slot) {
    if (!running.size) answer(turn, slot);
  },

  show(turn, slot, version) {
    turn.slots[slot].shown = version;
    views.get(turn).draw();
    keep(turns);
  },

  choose(turn, slot) {
    turn.chosen = slot;
    views.get(turn).draw();
    keep(turns);
  },

  async vote(version, kind, redrawAnswer) {
    const thumb = version.thumb === kind ? null : kind;
    if (await tell({ completion_id: version.id, thumb: thumb ?? "withdrawn" })) version.thumb = thumb;
    redrawAnswer();
    keep(turns);
  },

  async correct(version, text, redrawAnswer) {
    if (await tell({ completion_id: version.id, correction: text })) {
      version.correction = text === version.text ? null : text;
      redrawAnswer();
      keep(turns);
    }
  },

  async prefer(turn, slot) {
    const [better, worse] = [shown(turn.slots[slot]), shown(turn.slots[1 - slot])];
    if (await tell({ completion_id: better.id, preferred_over: worse.id })) {
      better.better = true;
      worse.better = false;
      turn.chosen = slot;
    }
    views.get(turn).draw();
    keep(turns);
  },
};

/** Send feedback; whether it was recorded. A failure is shown, unless nobody pressed a button for it. */
async function tell(event, quietly = false) {
  if (!feedback.enabled) return false;
  try {
    await sendFeedback(event);
    if (!quietly) announce("Recorded.");
    return true;
  } catch (error) {
    if (!quietly) alertUser(messageOf(error));
    return false;
  }
}

// ---- drawing ------------------------------------------------------------------------------------------------------

function addView(turn) {
  const view = new TurnView(turn, actions, feedback);
  views.set(turn, view);
  at("conversation").append(view.element);
  at("empty").hidden = true;
}

function redraw(turn, slot) {
  views.get(turn)?.drawAnswer(slot);
  scrollAlong();
}

const waiting = new Set();

// Tokens come faster than the screen is drawn.
function drawSoon(turn, slot) {
  const view = views.get(turn);
  if (!view || waiting.has(view.bodies[slot])) return;
  waiting.add(view.bodies[slot]);
  requestAnimationFrame(() => {
    waiting.delete(view.bodies[slot]);
    const version = shown(turn.slots[slot]);
    if (!version || !isOpen(version)) return;
    const waits = view.answers[slot].querySelector(".dots");
    if (waits && version.text) view.drawAnswer(slot);
    else view.drawText(slot);
    scrollAlong();
  });
}

function scrollAlong() {
  const scroller = at("scroller");
  if (follows) scroller.scrollTop = scroller.scrollHeight;
  showWhereWeAre();
}

function showWhereWeAre() {
  const { scrollTop, scrollHeight, clientHeight } = at("scroller");
  at("to-latest").hidden = scrollHeight - scrollTop - clientHeight < NEAR_THE_END;
}

function showRunning() {
  const isRunning = running.size > 0;
  at("send").hidden = isRunning;
  at("stop").hidden = !isRunning;
  announce(isRunning ? "The model is answering." : "");
  showSendable();
}

function showSendable() {
  at("send").disabled = !at("question").value.trim() || !models.length;
}

function newConversation() {
  stopAll();
  turns.length = 0;
  views.clear();
  at("conversation").replaceChildren();
  at("empty").hidden = false;
  keep(turns);
  at("question").focus();
}

// ---- the composer -------------------------------------------------------------------------------------------------

function fitQuestion() {
  const area = at("question");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, window.innerHeight * 0.4)}px`;
  showSendable();
}

function submit() {
  const area = at("question");
  if (!area.value.trim() || running.size || !models.length) return;
  if (!canGoOn(turns)) {
    alertUser("The last message has no answer to go on with. Ask for it again, or edit the message.");
    return;
  }
  const question = area.value;
  area.value = "";
  fitQuestion();
  ask(question);
}

function wireComposer() {
  const area = at("question");
  area.addEventListener("input", fitQuestion);
  area.addEventListener("keydown", (event) => {
    // While an input method composes a character, Enter belongs to it.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  });
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  at("stop").addEventListener("click", stopAll);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running.size && !document.querySelector("dialog[open]")) stopAll();
  });
  at("scroller").addEventListener("scroll", () => {
    const { scrollTop, scrollHeight, clientHeight } = at("scroller");
    follows = scrollHeight - scrollTop - clientHeight < NEAR_THE_END;
    showWhereWeAre();
  });
  at("to-latest").addEventListener("click", () => {
    follows = true;
    scrollAlong();
  });
}

async function start() {
  wireComposer();
  wireSettings();
  wireTools(newConversation);
  onMissingKey(askKey);
  try {
    models = await listModels();
    feedback = await feedbackSettings();
  } catch (error) {
    alertUser(messageOf(error));
  }
  fillModels(models);
  showPrivacy(feedback);
  turns.forEach(addView);
  showRunning();
  scrollAlong();
  at("question").focus();
}

start();
