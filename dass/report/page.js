"use strict";
// All that the page can do: the budget slider, and the table of runs. Without it the page shows everything else.
// Texts enter the page as text only, and the numbers of the slider are those that stand in the table of the frontier.

(() => {
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);

  function startBudget() {
    const slider = byId("budget");
    if (!slider) return;
    const students = [...byId("frontier").tBodies[0].rows];
    const rings = [...document.querySelectorAll(".choice")].map((ring) => [ring, ring.dataset.points.split(" ")]);
    const show = () => {
      const index = Number(slider.value);
      for (const place of document.querySelectorAll("[data-show]")) {
        const cell = students[index].querySelector(`[data-name="${place.dataset.show}"]`);
        place.replaceChildren(...[...cell.childNodes].map((node) => node.cloneNode(true)));
      }
      slider.setAttribute("aria-valuetext", students[index].dataset.said);
      for (const [ring, points] of rings) ring.setAttribute("transform", `translate(${points[index]})`);
    };
    slider.addEventListener("input", show);
    slider.value = slider.max; // a browser may remember another position
    show();
    for (const [ring] of rings) ring.classList.add("on");
    byId("budget-box").hidden = false;
  }

  const FORMATS = {
    text: (value) => value,
    integer: (value) => value.toLocaleString("en-US"),
    percent: (value) => value.toFixed(2),
    seconds: (value) => value.toFixed(1),
  };
  const SPARE = 8; // rows beyond the window, above and below

  function startRuns() {
    const box = byId("runs-window");
    if (!box) return;
    const { columns, rows } = facts.runs;
    const [task, student, status] = ["task", "student", "status"].map((name) => columns.indexOf(name));
    const texts = rows.map((row) => `${row[task]} ${row[student]} ${row[status]}`.toLowerCase());
    const heads = [...box.querySelectorAll("th")];
    const body = box.querySelector("tbody");
    const [filter, choice] = [byId("runs-filter"), byId("runs-task")];
    let shown = rows; // those that pass the filters, in order
    let order = { column: -1, sign: 1 };
    let rowHeight = 44;

    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    const isKnown = (row) => row[order.column] !== null;

    function select() {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const isWanted = (row, i) =>
        (choice.value === "" || row[task] === tasks[choice.value]) && words.every((word) => texts[i].includes(word));
      shown = rows.filter(isWanted);
      if (order.column >= 0) {
        const known = shown.filter(isKnown).sort((a, b) => order.sign * compare(a[order.column], b[order.column]));
        shown = [...known, ...shown.filter((row) => !isKnown(row))];
      }
      const total = rows.length.toLocaleString("en-US");
      byId("runs-count").textContent =
        shown.length === rows.length ? `${total} runs` : `${shown.length.toLocaleString("en-US")} of ${total} runs`;
      box.scrollTop = 0;
      draw();
    }

    function gap(num) {
      const row = document.createElement("tr");
      row.className = "gap";
      row.setAttribute("aria-hidden", "true");
      const cell = row.appendChild(document.createElement("td"));
      cell.style.height = `${num * rowHeight}px`;
      return row;
    }

    function line(run, index) {
      const row = document.createElement("tr");
      row.setAttribute("aria-rowindex", index + 2);
      for (const head of heads) {
        const value = run[columns.indexOf(head.dataset.column)];
        const cell = row.appendChild(document.createElement("td"));
        cell.className = head.className;
        const text = cell.appendChild(document.createElement("span"));
        text.textContent = value === null ? "–" : FORMATS[head.dataset.format](value);
        if (head.dataset.column === "student") {
          text.className = "key";
          const small = cell.appendChild(document.createElement("span"));
          small.className = "role";
          small.textContent = run[task];
        }
        if (head.dataset.format === "text") cell.title = text.textContent;
      }
      return row;
    }

    function draw() {
      const first = Math.max(0, Math.floor(box.scrollTop / rowHeight) - SPARE);
      const last = Math.min(shown.length, first + Math.ceil(box.clientHeight / rowHeight) + 2 * SPARE);
      const lines = shown.slice(first, last).map((run, i) => line(run, first + i));
      body.replaceChildren(gap(first), ...lines, gap(shown.length - last));
      box.querySelector("table").setAttribute("aria-rowcount", shown.length + 1);
      const height = lines.length ? lines[0].getBoundingClientRect().height : rowHeight;
      if (Math.abs(height - rowHeight) > 0.01) {
        rowHeight = height; // letters may be larger than usual
        draw();
      }
    }

    function sortBy(head) {
      const column = columns.indexOf(head.dataset.column);
      const isText = head.dataset.format === "text";
      const sign = order.column === column ? -order.sign : isText ? 1 : -1;
      order = { column, sign };
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      select();
    }

    function download() {
      const quote = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
      const text = [columns, ...shown].map((row) => row.map((value) => quote(String(value ?? ""))).join(",") + "\r\n");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(text, { type: "text/csv" }));
      link.download = "runs.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    const tasks = [...new Set(rows.map((row) => row[task]))].sort((a, b) => compare(a, b));
    for (const [i, name] of tasks.entries()) choice.add(new Option(name, i));
    filter.value = ""; // a browser may remember another text
    filter.addEventListener("input", select);
    choice.addEventListener("change", select);
    byId("runs-csv").addEventListener("click", download);
    for (const head of heads) head.querySelector("button").addEventListener("click", () => sortBy(head));
    box.addEventListener("scroll", () => requestAnimationFrame(draw));
    addEventListener("resize", draw);
    box.hidden = byId("runs-tools").hidden = false;
    select();
  }

  startBudget();
  startRuns();
})();
