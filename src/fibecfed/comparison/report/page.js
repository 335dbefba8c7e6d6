(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Tables: a heading sorts by its column, again the other way round; cells without a number stay at the end.
  for (const table of all("table")) {
    const body = table.tBodies[0];
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const numeric = head.classList.contains("n");
        const before = head.getAttribute("aria-sort");
        const down = before === "none" ? numeric : before === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => {
          const cell = row.cells[column];
          if (!numeric) return cell.textContent;
          return cell.dataset.v === undefined ? null : cell.dataset.v === "inf" ? Infinity : Number(cell.dataset.v);
        };
        const order = (a, b) => {
          const x = value(a), y = value(b);
          if (x === y) return 0;
          if (x === null || x === "-") return 1;
          if (y === null || y === "-") return -1;
          const sign = numeric ? (x < y ? -1 : 1) : x.localeCompare(y, "en", { numeric: true });
          return down ? -sign : sign;
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  }

  // Methods: chips set them off in every figure.
  const chips = all("[data-chip]");
  const slots = new Map();
  const say = document.querySelector(".say");
  const slotOf = (element) => { const found = /\bs(\d)\b/.exec(element.getAttribute("class") || ""); return found ? Number(found[1]) : null; };
  const marks = new Map();
  for (const mark of all("g[data-m]")) {
    if (!marks.has(mark.dataset.m)) marks.set(mark.dataset.m, []);
    marks.get(mark.dataset.m).push(mark);
  }
  for (const chip of chips) {
    const name = chip.dataset.chip;
    if (slotOf(chip) !== null) slots.set(name, slotOf(chip));
    chip.addEventListener("click", () => {
      say.textContent = "";
      if (slots.has(name)) slots.delete(name);
      else {
        const free = [0, 1, 2, 3, 4, 5].find((slot) => ![...slots.values()].includes(slot));
        if (free === undefined) { say.textContent = `${slots.size} are highlighted already: click one of them first to remove it.`; return; }
        slots.set(name, free);
      }
      const slot = slots.get(name);
      chip.setAttribute("aria-pressed", String(slots.has(name)));
      chip.setAttribute("class", slot === undefined ? "" : `s${slot}`);
      for (const mark of marks.get(name) || []) {
        mark.setAttribute("class", slot === undefined ? "m" : `m s${slot}`);
        if (slot !== undefined && !mark.querySelector(".name:not(.only)")) mark.parentNode.insertBefore(mark, mark.parentNode.querySelector(".over"));
      }
    });
  }

  // Curves: what they are drawn over, and which score.
  for (const input of all(".axes input")) {
    input.addEventListener("change", () => { for (const grid of all(".curves")) grid.dataset[input.name] = input.value; });
  }

  // A link to a section whose content is folded opens it.
  const unfold = () => { const fold = location.hash && document.querySelector(`${location.hash} > details[data-fold]`); if (fold) fold.open = true; };
  addEventListener("hashchange", unfold);
  unfold();

  // A run that goes on: until the box is unticked, the page reads itself again, scrolled and unfolded as it was.
  const refresh = document.querySelector("[data-refresh]");
  if (refresh) {
    const folds = all("details");
    try {
      for (const place of JSON.parse(sessionStorage.getItem("unfolded") || "[]")) if (folds[place]) folds[place].open = true;
    } catch { /* a browser that keeps nothing for files */ }
    setInterval(() => {
      if (!refresh.checked) return;
      try {
        sessionStorage.setItem("unfolded", JSON.stringify(folds.flatMap((fold, place) => (fold.open ? [place] : []))));
      } catch { /* likewise */ }
      location.reload();
    }, 1000 * Number(refresh.dataset.refresh));
  }

  // Paper shows what is folded on the screen, except the long table of runs, which says that it is left out.
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = all("details:not([open])").filter((fold) => !fold.querySelector("#table-runs"));
    for (const fold of unfolded) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of unfolded) fold.open = false; unfolded = []; });
})();
