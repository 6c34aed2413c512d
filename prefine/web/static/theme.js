// Runs before anything is drawn, so that no page in the wrong colours flashes up.
"use strict";
try {
  const theme = localStorage.getItem("prefine-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is blocked: the system's colours.
}
