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
  // One stop for the tab key in each table; the arrow keys move from cell to cell.
  document.querySelectorAll("table").forEach((table) => {
    const first = table.querySelector("td[data-details]");
    if (first) first.tabIndex = 0;
  });
  const step = (cell, key) => {
    const row = cell.parentElement;
    const beside = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[key];
    if (beside) return cell[beside];
    let other = row;
    do other = key === "ArrowUp" ? other.previousElementSibling : other.nextElementSibling;
    while (other && other.hidden);
    return other && other.cells[cell.cellIndex];
  };
  document.addEventListener("keydown", (event) => {
    const cell = event.key.startsWith("Arrow") && detailed(event);
    const next = cell && step(cell, event.key);
    if (!next || next.dataset.details === undefined) return;
    event.preventDefault();
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
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

  // Reads all sizes before anything is changed: one layout for the whole page.
  const hinted = (boxes) => {
    const sizes = boxes.map((box) => [box.scrollWidth - box.clientWidth, box.scrollLeft]);
    boxes.forEach((box, place) => {
      const [beyond, left] = sizes[place];
      box.toggleAttribute("data-more", beyond - left > 8);
      const hint = box.parentElement.querySelector(":scope > .tools .hint");
      if (hint) hint.hidden = beyond <= 8;
    });
  };
  const boxes = [...document.querySelectorAll(".scroll")];
  const seen = () => hinted(boxes.filter((box) => box.offsetParent));
  boxes.forEach((box) => box.addEventListener("scroll", () => hinted([box])));
  document.querySelectorAll("details.card").forEach((card) =>
    card.addEventListener("toggle", () => hinted([...card.querySelectorAll(".scroll")])));
  window.addEventListener("resize", seen);
  seen();

  // A link to a card opens it.
  const opened = () => {
    const card = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (card && card.tagName === "DETAILS") { card.open = true; card.scrollIntoView(); }
  };
  window.addEventListener("hashchange", opened);
  opened();

  const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const level = (text, example) => {
    const pair = LETTERS.indexOf(text[example >> 1]);
    return example % 2 ? pair % 8 : pair >> 3;
  };
  const browse = (home, data) => {
    const [task, right, wrong] = ["task", "right", "wrong"].map((name) => home.querySelector(`[data-${name}]`));
    const list = home.querySelector("[data-list]"), more = home.querySelector("[data-more]");
    const count = home.querySelector(".count");
    const option = (text, value) => Object.assign(document.createElement("option"), { textContent: text, value });
    data.tasks.forEach((one, place) => task.append(option(one.name, place)));
    data.methods.forEach((name, place) => { right.append(option(name, place)); wrong.append(option(name, place)); });
    [right.value, wrong.value] = data.pair;
    const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
    const picture = (one, example) => {
      const [width, height, columns, whole, tall] = one.size, place = one.tiles[example];
      const scale = Math.max(1, Math.floor(64 / Math.max(width, height)));
      const tile = element("span", "");
      tile.className = `tile sheet-${one.sheet}`;
      tile.setAttribute("role", "img");
      tile.setAttribute("aria-label", `test example ${example + 1}`);
      tile.style.cssText = `width:${width * scale}px;height:${height * scale}px;` +
        `background-position:-${(place % columns) * width * scale}px -${Math.floor(place / columns) * height * scale}px;` +
        `background-size:${whole * scale}px ${tall * scale}px`;
      return tile;
    };
    const row = (one, example, levels) => {
      const item = document.createElement("li");
      if (one.tiles && example < one.tiles.length) item.append(picture(one, example));
      item.append(element("span", one.texts ? one.texts[one.questions[example]] : one.names[example]));
      if (one.answers) item.append(element("b", one.answers[one.right[example]]));
      const times = levels.map((text) => Math.round((level(text, example) * one.runs) / one.top));
      item.append(element("small", `no. ${example + 1}: right in ${times[0]} and ${times[1]} of ${one.runs} runs`));
      return item;
    };
    let found = [], shown = 0;
    const page = () => {
      const one = data.tasks[task.value];
      const levels = [one.levels[right.value], one.levels[wrong.value]];
      list.append(...found.slice(shown, shown + 24).map((example) => row(one, example, levels)));
      shown = Math.min(shown + 24, found.length);
      more.hidden = shown >= found.length;
    };
    // The examples that `a` answers in more, and `b` in less than half of the runs.
    const differing = (one, a, b) => [...one.right.keys()].filter((example) =>
      2 * level(a, example) > one.top && 2 * level(b, example) < one.top);
    const look = () => {
      const one = data.tasks[task.value], total = one.right.length;
      const [a, b] = [one.levels[right.value], one.levels[wrong.value]];
      found = a && b ? differing(one, a, b) : [];
      const pictured = one.tiles ? one.tiles.length : 0;
      found.sort((m, n) => (m >= pictured) - (n >= pictured) || level(a, n) - level(b, n) - level(a, m) + level(b, m) || m - n);
      const back = a && b ? differing(one, b, a).length : 0;
      const [name, other] = [data.methods[right.value], data.methods[wrong.value]];
      count.textContent = a && b
        ? `${found.length} of ${total} examples: ${name} right in more than half of the runs, ${other} in less than half; the other way round: ${back}.` +
          (pictured && pictured < total ? ` Pictures are stored for the first ${pictured} examples and come first.` : "")
        : "One of the two has no runs on this task.";
      list.replaceChildren();
      shown = 0;
      page();
    };
    [task, right, wrong].forEach((box) => box.addEventListener("change", look));
    home.querySelector("[data-swap]").addEventListener("click", () => {
      [right.value, wrong.value] = [wrong.value, right.value];
      look();
    });
    more.addEventListener("click", page);
    look();
  };
  const outcomes = document.getElementById("outcomes");
  if (outcomes) browse(document.getElementById("browser"), JSON.parse(outcomes.textContent));

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  if (window.matchMedia("(max-width: 60rem)").matches) document.querySelector("nav details").open = false;
})();
