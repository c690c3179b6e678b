"use strict";
(function () {
  const root = document.documentElement;
  const one = (selector) => document.querySelector(selector);
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  root.classList.add("has-js");

  // Theme: auto follows the system; a choice is remembered where the browser allows it.
  const themes = ["auto", "light", "dark"];
  const theme = one("#theme");
  const remember = (value) => {
    try { localStorage.setItem("worthit-theme", value); } catch (error) { /* private window */ }
  };
  const remembered = () => {
    try { return localStorage.getItem("worthit-theme"); } catch (error) { return null; }
  };
  const paint = (value) => {
    if (value === "auto") { delete root.dataset.theme; } else { root.dataset.theme = value; }
    theme.querySelector("span").textContent = theme.dataset[value];
    theme.value = value;
  };
  const wanted = new URLSearchParams(location.search).get("theme") || remembered();
  paint(themes.includes(wanted) ? wanted : "auto");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(theme.value) + 1) % themes.length];
    paint(next);
    remember(next);
  });

  // Filter by words and by verdict.
  const filter = one("#filter");
  const rows = all("#verdict-table tbody tr");
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const shown = one("#shown");
  let kind = "";
  const refresh = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    for (const row of rows) {
      const fits = (!kind || row.dataset.kind === kind)
        && words.every((word) => texts.get(row).includes(word));
      row.hidden = !fits;
      n += fits ? 1 : 0;
    }
    shown.textContent = n + " / " + rows.length + " " + shown.dataset.word;
  };
  filter.addEventListener("input", refresh);
  const kinds = all("[data-show]");
  for (const button of kinds) {
    button.addEventListener("click", () => {
      kind = button.dataset.show;
      for (const other of kinds) { other.setAttribute("aria-pressed", String(other === button)); }
      refresh();
    });
  }
  refresh();

  // Sort by a column; a second press turns it round.
  const body = one("#verdict-table tbody");
  for (const button of all(".sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const column = Number(button.dataset.column);
      const falling = head.getAttribute("aria-sort") === "ascending";
      for (const other of all("#verdict-table th")) { other.setAttribute("aria-sort", "none"); }
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort || row.cells[column].textContent;
      const compare = (a, b) => {
        const x = key(a), y = key(b);
        const difference = Number(x) - Number(y);
        return Number.isNaN(difference) ? x.localeCompare(y) : difference;
      };
      rows.sort((a, b) => (falling ? -1 : 1) * compare(a, b));
      body.append(...rows);
    });
  }

  // A link to a technique opens its card; printing opens all of them.
  const openTarget = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", openTarget);
  openTarget();
  addEventListener("beforeprint", () => all("details.card").forEach((card) => { card.open = true; }));

  // "/" goes to the filter, Escape clears it.
  addEventListener("keydown", (event) => {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      filter.focus();
    } else if (event.key === "Escape" && event.target === filter) {
      filter.value = "";
      refresh();
    }
  });
})();
