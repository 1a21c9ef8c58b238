"use strict";
(() => {
  const find = (selector) => document.querySelector(selector), all = (selector) => [...document.querySelectorAll(selector)];
  for (const tool of all(".tool")) tool.hidden = false;

  // Sortable tables: the heading's button sorts by its column; again turns the order round. Rows without a value stay last.
  const value = (row, index, kind) => {
    const cell = row.cells[index];
    return kind === "number" ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const empty = (item) => item === -1 || item === "–";
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const heading = button.closest("th"), index = heading.cellIndex, kind = button.dataset.kind;
      const first = kind === "number" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      for (const other of table.tHead.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row, index, kind), row]);
      rows.sort(([a], [b]) => {
        if (empty(a) || empty(b)) return empty(a) - empty(b);
        return sign * (kind === "number" ? a - b : a.localeCompare(b));
      });
      body.append(...rows.map(([, row]) => row));
    });
  }
  find("#search").addEventListener("input", (event) => {
    const text = event.target.value.toLowerCase(), rows = all("table.classes tbody tr");
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(text);
    const left = rows.filter((row) => !row.hidden).length;
    find("#searched").textContent = text ? `${left} of ${rows.length}` : "";
  });

  // Mistakes: a class chosen, and the frames larger in a dialog, through which the arrow keys go.
  const cards = all("#mistakes .card"), shown = () => cards.filter((card) => !card.hidden);
  const pictures = new Map(all(".card img").map((image) => [image.closest(".card").dataset.video, image]));
  find("#filter")?.addEventListener("change", (event) => {
    for (const card of cards) card.hidden = event.target.value !== "" && card.dataset.true !== event.target.value;
    find("#filtered").textContent = `${shown().length} shown`;
  });
  const dialog = find("#large");
  let open = null;
  const enlarge = (card) => {
    open = card;
    dialog.firstElementChild.replaceChildren(...[...card.children].map((part) => {
      const copy = part.matches("button") ? part.firstElementChild : part;
      return copy.cloneNode(true);
    }));
    if (!dialog.open) dialog.showModal();
  };
  const step = (by) => {
    const among = cards.includes(open) ? shown() : all("#why .card");
    enlarge(among[(among.indexOf(open) + by + among.length) % among.length]);
  };
  for (const card of all(".card")) card.querySelector(".sheet")?.addEventListener("click", () => enlarge(card));
  for (const button of dialog.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  }
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) step(by);
  });
  for (const link of all("[data-open]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      enlarge(cards[Number(link.dataset.open)]);
    });
  }

  // Confusion matrix: pointer, tap and arrow keys choose a cell; the panel beside it names classes, counts and videos.
  const data = JSON.parse(find("#matrix-data").textContent);
  const region = find("#matrix"), drawing = region.querySelector("svg");
  const cursor = find("#matrix-cursor"), detail = find("#matrix-detail");
  const size = Number(cursor.dataset.cell), classes = data.names.length;
  const [across, down, box] = cursor.children;
  let [row, column] = [-1, -1], pinned = false;

  const words = /(?<=[a-z])(?=[A-Z])|(?<=[_/.-])/;
  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    // Names break between their words, as in the tables.
    for (const part of text.split(words)) made.append(part, document.createElement("wbr"));
    return made;
  };
  const describe = () => {
    const [count, videos] = data.cells[`${row},${column}`] ?? [0, []];
    const total = data.totals[row];
    const share = total ? ` (${Math.round((100 * count) / total)} %)` : "";
    const verdict = row === column ? "recognised" : `taken for ${data.names[column]}`;
    const head = element("p", "big name", `${data.names[row]} ${verdict}`);
    const list = document.createElement("ul");
    for (const video of videos) {
      const item = element("li", "name file", video);
      const picture = pictures.get(video)?.cloneNode();
      if (picture) item.prepend(picture);
      list.append(item);
    }
    if (count > videos.length) list.append(element("li", "muted", `and ${count - videos.length} more`));
    detail.replaceChildren(head, element("p", "muted", `${count} of ${total} ${data.noun}${share}`), list);
  };
  const choose = (newRow, newColumn) => {
    if (newRow === row && newColumn === column) return;
    [row, column] = [newRow, newColumn];
    for (const rect of [across, box]) rect.setAttribute("y", row * size);
    for (const rect of [down, box]) rect.setAttribute("x", column * size);
    cursor.setAttribute("visibility", "visible");
    describe();
  };
  choose(...data.first);
  const cellAt = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
    const at = [Math.floor(point.y / size), Math.floor(point.x / size)];
    return at.every((index) => index >= 0 && index < classes) ? at : null;
  };
  region.addEventListener("pointermove", (event) => {
    const at = event.pointerType === "mouse" && !pinned && cellAt(event);
    if (at) choose(...at);
  });
  region.addEventListener("click", (event) => {
    const at = cellAt(event);
    if (!at) return;
    pinned = !(pinned && at[0] === row && at[1] === column);
    choose(...at);
  });
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  region.addEventListener("keydown", (event) => {
    const by = steps[event.key];
    if (event.key === "Escape") pinned = false;
    if (!by) return;
    event.preventDefault();
    let [y, x] = [row + by[0], column + by[1]];
    const inside = () => y >= 0 && x >= 0 && y < classes && x < classes;
    while (event.shiftKey && inside() && !data.cells[`${y},${x}`]) [y, x] = [y + by[0], x + by[1]];
    if (!inside()) return;
    pinned = true;
    choose(y, x);
    box.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
})();
