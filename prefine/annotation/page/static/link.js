// A personal link's token stands after the #, where no log has it. It is exchanged for a session.

import { at, nextScreen } from "./frame.js";
import { post } from "./requests.js";

try {
  await post("/api/link", { token: location.hash.slice(1) || "none" });
  nextScreen();
} catch (problem) {
  at("going").hidden = true;
  at("problem").textContent = problem.message;
  at("problem").hidden = false;
}
