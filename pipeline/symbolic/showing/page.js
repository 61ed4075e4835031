"use strict";
// One screen at a time: the part after # names an expert; without it the layers and the index are shown.
const MOST = 50;
const home = document.getElementById("home");
const experts = [...document.querySelectorAll("article.expert")];
const body = document.querySelector("#index tbody");
const rows = [...body.rows];
const [search, layer, order] = ["search", "layer", "order"].map((id) => document.getElementById(id));

function number(row, name) {
  return Number(row.dataset[name]);
}

const BEFORE = {
  energy: (a, b) => number(b, "energy") - number(a, "energy"),
  f1: (a, b) => number(b, "f1") - number(a, "f1"),
  rate: (a, b) => number(b, "rate") - number(a, "rate"),
  place: (a, b) => number(a, "layer") - number(b, "layer") || number(a, "expert") - number(b, "expert"),
};

function matches(row) {
  const wanted = search.value;
  return (layer.value === "" || row.dataset.layer === layer.value)
    && (wanted === "" || row.dataset.expert === wanted || row.cells[6].textContent.includes(wanted)
      || row.cells[7].textContent.includes(wanted));
}

function list() {
  const found = rows.filter(matches).sort(BEFORE[order.value]);
  for (const row of rows) row.classList.add("hidden");
  for (const row of found.slice(0, MOST)) {
    row.classList.remove("hidden");
    body.append(row);
  }
  document.getElementById("count").textContent = `${Math.min(MOST, found.length)} of ${found.length} shown`;
}

function turn() {
  const chosen = experts.find((expert) => `#${expert.id}` === location.hash);
  home.classList.toggle("hidden", chosen !== undefined);
  for (const expert of experts) expert.classList.toggle("hidden", expert !== chosen);
  scrollTo(0, 0);
}

document.body.classList.add("scripted");
for (const control of [search, layer, order]) control.addEventListener("input", list);
addEventListener("hashchange", turn);
list();
turn();
