"use strict";
(() => {
  // Tables: headings become buttons. Numbers start with the largest, words with the first; what is empty stays last.
  const compare = (a, b) => {
    if (a === "" || b === "") return null;
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };
  const sort = (heading) => {
    const table = heading.closest("table"), body = table.tBodies[0], place = heading.cellIndex;
    const first = heading.classList.contains("number") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = heading.getAttribute("aria-sort") === first ? other : first;
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => row.cells[place].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const order = compare(value(a), value(b));
      return order === null ? (value(a) === "") - (value(b) === "") : sign * order;
    });
    body.append(...rows);
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
  };
  for (const heading of document.querySelectorAll("table[data-sortable] thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(heading));
    heading.append(button);
  }

  // Galleries and lists of checks: a form of menus above, each of which names a data attribute.
  for (const form of document.querySelectorAll("form.filters")) {
    const items = [...form.nextElementSibling.children], menus = [...form.elements].filter((each) => each.name);
    const show = () => {
      const wanted = menus.filter((menu) => menu.value !== "");
      for (const item of items) item.hidden = !wanted.every((menu) => item.dataset[menu.name] === menu.value);
      const left = items.filter((item) => !item.hidden).length;
      form.querySelector("output").textContent = left ? `${left} of ${items.length} shown` : "nothing fits; choose “all” somewhere";
    };
    form.addEventListener("change", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    show();
  }

  // Long tables: a field above, for rows whose heading holds every word that is typed.
  for (const form of document.querySelectorAll("form.search")) {
    const field = form.querySelector("input"), rows = [...form.nextElementSibling.querySelector("tbody").rows];
    const names = rows.map((row) => (row.cells[0].title || row.cells[0].textContent).toLowerCase());
    const show = () => {
      const words = field.value.toLowerCase().split(/\s+/);
      rows.forEach((row, place) => { row.hidden = !words.every((word) => names[place].includes(word)); });
      form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
    };
    field.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    show();
  }

  // On paper everything that can be unfolded is unfolded, but for tables of many pages.
  const folded = () => [...document.querySelectorAll("details:not([open], .long)")];
  let opened = [];
  addEventListener("beforeprint", () => { opened = folded(); for (const each of opened) each.open = true; });
  addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
})();
