"use strict";
// Sorting, filtering and details of the tables. Without it the page still shows everything.
(() => {
  const key = (cell) => {
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return text === "" ? null : text.toLowerCase();
  };

  // Numbers before text, what is empty always last, equal ones in their first order.
  const compare = (a, b, direction) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    if (typeof a === "number") return direction * (a - b);
    return direction * a.localeCompare(b, "en", { numeric: true });
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const first = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const numeric = first.some((row) => row.cells[column].dataset.value !== undefined);
      const order = numeric ? ["descending", "ascending", ""] : ["ascending", "descending", ""];
      head.querySelector("button").addEventListener("click", () => {
        const now = head.getAttribute("aria-sort") || "";
        const next = order[(order.indexOf(now) + 1) % order.length];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        const rows = [...first];
        if (next) {
          head.setAttribute("aria-sort", next);
          const direction = next === "ascending" ? 1 : -1;
          rows.sort((a, b) => compare(key(a.cells[column]), key(b.cells[column]), direction));
        }
        body.append(...rows);
      });
    });
  };

  const filterable = (section, table) => {
    const box = section.querySelector("[data-filter]");
    const choice = section.querySelector("select[data-group]");
    const count = section.querySelector(".count");
    const rows = [...table.tBodies[0].rows];
    const columns = [...table.tHead.rows[0].cells].map((head) => head.dataset.group);
    const apply = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      });
      count.textContent = words.length ? `${left} of ${rows.length} rows` : "";
    };
    const narrow = () => {
      [table.tHead.rows[0], ...rows].forEach((row) =>
        [...row.cells].forEach((cell, column) => {
          cell.hidden = Boolean(choice.value && columns[column] && columns[column] !== choice.value);
        }));
    };
    box.addEventListener("input", apply);
    if (choice) choice.addEventListener("change", narrow);
  };

  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = (cell) => {
    tip.textContent = cell.dataset.details;
    tip.hidden = false;
    const place = cell.getBoundingClientRect();
    const left = Math.min(place.left, window.innerWidth - tip.offsetWidth - 8);
    const below = place.bottom + tip.offsetHeight + 8 < window.innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? place.bottom + 4 : Math.max(4, place.top - tip.offsetHeight - 4)}px`;
  };
  const detailed = (event) => event.target.closest && event.target.closest("td[data-details]");

  document.querySelectorAll("td[title]").forEach((cell) => {
    cell.dataset.details = cell.title;
    cell.removeAttribute("title");
    cell.tabIndex = -1;
  });
  document.addEventListener("mouseover", (event) => {
    const cell = detailed(event);
    if (cell) show(cell); else hide();
  });
  document.addEventListener("focusin", (event) => { const cell = detailed(event); if (cell) show(cell); });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  document.querySelectorAll("section[id^='table-']").forEach((section) => {
    const table = section.querySelector("table");
    if (!table || !table.tHead.rows.length) return;
    sortable(table);
    filterable(section, table);
  });

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  if (window.matchMedia("(max-width: 60rem)").matches) document.querySelector("nav details").open = false;
})();
