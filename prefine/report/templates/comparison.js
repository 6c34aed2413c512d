"use strict";
(() => {
  const bar = document.getElementById("filter");
  const list = document.getElementById("all-answers");
  if (!bar || !list) return;
  const [words, category, outcome] = ["words", "category", "outcome"].map((id) => document.getElementById(id));
  const shown = document.getElementById("shown");
  const groups = [...list.querySelectorAll("details.category")].map((details) => ({
    details,
    open: details.open,
    name: details.dataset.category,
    rows: [...details.querySelectorAll("article")].map((article) => ({
      article,
      text: [...article.querySelectorAll(".said")].map((said) => said.textContent.toLowerCase()).join("\n"),
      outcome: article.dataset.outcome,
      faulty: article.dataset.faulty === "yes",
    })),
  }));
  const total = groups.reduce((sum, group) => sum + group.rows.length, 0);

  function apply() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = outcome.value;
    const active = wanted.length > 0 || category.value !== "" || kind !== "";
    let found = 0;
    for (const group of groups) {
      let here = 0;
      for (const row of group.rows) {
        const fits =
          (category.value === "" || category.value === group.name) &&
          (kind === "" || (kind === "faulty" ? row.faulty : row.outcome === kind)) &&
          wanted.every((word) => row.text.includes(word));
        row.article.hidden = !fits;
        here += fits;
      }
      found += here;
      group.details.hidden = here === 0;
      group.details.open = active ? here > 0 : group.open;
    }
    shown.textContent = active ? `${found} of ${total}` : `${total} in all`;
  }

  for (const control of [words, category, outcome]) {
    control.value = "";
    control.addEventListener("input", apply);
  }
  // A link to an answer opens the group that it is in, and clears a filter that would hide it.
  function reveal() {
    const target = document.getElementById(location.hash.slice(1));
    if (!target || !list.contains(target)) return;
    for (const control of [words, category, outcome]) control.value = "";
    apply();
    target.closest("details").open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  bar.hidden = false;
  apply();
  reveal();
})();
