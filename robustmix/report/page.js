// What a reader can do with the page: sort tables, take them as CSV and figures as SVG. It is complete without this.
"use strict";

const words = new Intl.Collator("en", { numeric: true });

// The text of an element with a space between its parts.
function textOf(element) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const parts = [];
  while (walker.nextNode()) parts.push(walker.currentNode.data.replace(/\s+/g, " ").trim());
  return parts.filter(Boolean).join(" ");
}

// The number that a cell sorts by; null for what is missing, NaN for words.
function numberOf(cell) {
  const value = cell.dataset.value ?? textOf(cell).replace(/[\s,%]/g, "").replace("\u2212", "-");
  return value === "" || value === "–" ? null : Number(value);
}

function sortBy(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, cell: row.cells[column] }));
  for (const one of rows) one.number = numberOf(one.cell);
  const numeric = rows.every((one) => !Number.isNaN(one.number));
  const sign = descending ? -1 : 1;
  rows.sort((a, b) => {
    if (!numeric) return sign * words.compare(textOf(a.cell), textOf(b.cell));
    if (a.number === null || b.number === null) return (a.number === null) - (b.number === null);
    return a.number === b.number ? 0 : sign * (a.number < b.number ? -1 : 1);
  });
  body.append(...rows.map((one) => one.row));
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  if (table.tBodies[0].rows.length < 2) return;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending);
    });
  });
}

// A cell of a CSV file. What a spreadsheet would take for a formula is marked as text, unless it is a number and no more.
function quoted(text) {
  const number = /^[+-]?\d+(\.\d+)?(\s?%)?$/;
  const safe = /^[=@+\-\t\r]/.test(text) && !number.test(text) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}

function csvOf(table) {
  return [...table.rows].map((row) => [...row.cells].map((cell) => quoted(textOf(cell))).join(",") + "\r\n").join("");
}

// A figure as a file of its own: black on white, without the page's colours and variables.
function svgOf(figure) {
  const svg = figure.querySelector("svg").cloneNode(true);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ");
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  svg.setAttribute("width", `${width}pt`);
  svg.setAttribute("height", `${height}pt`);
  svg.setAttribute("font-family", "Helvetica, Arial, sans-serif");
  const text = new XMLSerializer().serializeToString(svg);
  return text.replace(/var\(--[\w-]+,\s*([^)]+)\)/g, "$1").replaceAll("currentColor", "#000000");
}

function offer(place, label, title, name, type, make) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "download";
  button.textContent = label;
  button.setAttribute("aria-label", `${label}: ${title}`);
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([make()], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  place.append(button);
}

for (const table of document.querySelectorAll("table")) {
  const title = textOf(table.caption);
  makeSortable(table);
  const place = document.createElement("div");
  place.className = "tools";
  table.closest(".scroll").after(place);
  // A mark at the beginning tells spreadsheets that it is UTF-8.
  offer(place, "CSV", title, `${table.caption.id}.csv`, "text/csv", () => "\ufeff" + csvOf(table));
}
for (const figure of document.querySelectorAll("figure")) {
  const caption = figure.querySelector("figcaption");
  const name = textOf(caption).replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").toLowerCase();
  offer(caption, "SVG", textOf(caption), `${name}.svg`, "image/svg+xml", () => svgOf(figure));
}
for (const text of document.querySelectorAll(".quoted, pre")) {
  const place = document.createElement("div");
  place.className = "tools";
  text.after(place);
  const name = text.tagName === "PRE" ? "references.bib" : "methods.txt";
  const parts = text.tagName === "PRE" ? [text] : [...text.children];
  const content = () => parts.map((part) => part.textContent.trim()).join("\n\n") + "\n";
  offer(place, text.tagName === "PRE" ? "BIB" : "TXT", name, name, "text/plain", content);
}
// Paper has no summary to click on.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const details of closed) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
});
