import { element, fetchJson } from "./shared.js";

const choice = document.querySelector("#cohort");
const filter = document.querySelector("#filter");
const head = document.querySelector("thead");
const body = document.querySelector("tbody");
let rows = [];
let shows = {};

function score(cohort, row, asset) {
  const found = row.shows[asset];
  if (!found) return element("td", { class: "none" }, "no evidence");
  const address = `/${cohort}/slides/${encodeURIComponent(row.slide)}?show=${asset}`;
  const words = found.score ? `${found.score.toFixed(3)} towards ${found.towards}` : `towards ${found.towards}`;
  return element("td", {}, element("a", { href: address }, words),
    found.seen_in_training ? element("small", {}, " seen in training") : null);
}

function draw() {
  const cohort = choice.value;
  const text = filter.value.toLowerCase();
  head.replaceChildren(element("tr", {}, ...["slide", "patient", ...Object.values(shows[cohort]), "state"].map(
    (name) => element("th", {}, name))));
  body.replaceChildren(...rows
    .filter((row) => `${row.slide} ${row.patient}`.toLowerCase().includes(text))
    .map((row) => element("tr", {},
      element("td", {}, element("a", { href: `/${cohort}/slides/${encodeURIComponent(row.slide)}` }, row.slide)),
      element("td", {}, row.patient),
      ...Object.keys(shows[cohort]).map((asset) => score(cohort, row, asset)),
      element("td", { class: row.state }, row.reason ? `${row.state}: ${row.reason}` : row.state))));
}

async function load() {
  rows = await fetchJson(`/api/${choice.value}/slides`);
  draw();
}

const { cohorts } = await fetchJson("/api/cohorts");
shows = Object.fromEntries(cohorts.map((each) => [each.cohort, each.shows]));
choice.replaceChildren(...cohorts.map((each) => element("option", {}, each.cohort)));
choice.hidden = cohorts.length < 2;
if (cohorts.length === 0) throw document.body.append("There is no cohort: `make demo` makes one.");
choice.value = new URLSearchParams(location.search).get("cohort") ?? cohorts[0].cohort;
choice.addEventListener("change", load);
filter.addEventListener("input", draw);
await load();
