"use strict";
(() => {
  // Sortable tables: the heading's button sorts by its column; again turns the order round. Rows without a value stay last.
  const value = (row, index, kind) => {
    const cell = row.cells[index];
    return kind === "number" ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const empty = (item) => item === -1 || item === "–";
  for (const table of document.querySelectorAll("table.sortable")) {
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

  // Confusion matrix: pointer, tap and arrow keys choose a cell; the panel beside it names classes, counts and videos.
  const data = JSON.parse(document.getElementById("matrix-data").textContent);
  const region = document.getElementById("matrix"), drawing = region.querySelector("svg");
  const cursor = document.getElementById("matrix-cursor"), detail = document.getElementById("matrix-detail");
  const size = Number(cursor.dataset.cell), classes = data.names.length;
  const [across, down, box] = cursor.children;
  let row = 0, column = 0, chosen = false, pinned = false;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.textContent = text;
    return made;
  };
  const describe = () => {
    const [count, videos] = data.cells[`${row},${column}`] ?? [0, []];
    const total = data.totals[row];
    const share = total ? ` (${Math.round((100 * count) / total)} %)` : "";
    const head = element("p", "big name", data.names[row]);
    head.append(row === column ? " recognised" : ` taken for ${data.names[column]}`);
    const list = document.createElement("ul");
    for (const video of videos) list.append(element("li", "name file", video));
    if (count > videos.length) list.append(element("li", "muted", `and ${count - videos.length} more`));
    detail.replaceChildren(head, element("p", "muted", `${count} of ${total} videos${share}`), list);
  };
  const choose = (newRow, newColumn) => {
    if (chosen && newRow === row && newColumn === column) return;
    [row, column, chosen] = [newRow, newColumn, true];
    for (const rect of [across, box]) rect.setAttribute("y", row * size);
    for (const rect of [down, box]) rect.setAttribute("x", column * size);
    cursor.setAttribute("visibility", "visible");
    describe();
  };
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
    const step = steps[event.key];
    if (event.key === "Escape") pinned = false;
    if (!step) return;
    event.preventDefault();
    let [y, x] = chosen ? [row + step[0], column + step[1]] : [0, 0];
    const inside = () => y >= 0 && x >= 0 && y < classes && x < classes;
    while (event.shiftKey && inside() && !data.cells[`${y},${x}`]) [y, x] = [y + step[0], x + step[1]];
    if (!inside()) return;
    pinned = true;
    choose(y, x);
    box.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
})();
