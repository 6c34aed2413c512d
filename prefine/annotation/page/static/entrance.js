// Somebody without a session gives a name, and a password where there is one.

import { at, enableButtons, nextScreen } from "./frame.js";
import { post } from "./requests.js";

at("enter").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = at("enter").querySelector("button");
  button.disabled = true;
  try {
    await post("/api/enter", { name: at("name").value, password: at("password")?.value ?? "" }, 1);
    nextScreen();
  } catch (problem) {
    at("problem").textContent = problem.message;
    at("problem").hidden = false;
    button.disabled = false;
  }
});
enableButtons();
