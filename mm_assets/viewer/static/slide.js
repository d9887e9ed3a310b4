// One slide: deep zoom, the places of its evidence, the features behind it, and opinions.
import { element, fetchJson } from "./shared.js";

const [, cohort, , slide] = location.pathname.split("/").map(decodeURIComponent);
const data = `/api/${encodeURIComponent(cohort)}`;
const page = Object.fromEntries(["slide", "show", "level", "most", "message", "prediction", "imaging", "omics",
  "clinical", "user"].map((id) => [id, document.getElementById(id)]));
const CONTEXT = 3; // Fields of view are this much wider than the place flown to.
const ALL = "all";
const SMALL = 64; // Places of fewer level-0 pixels are shaded by score; a number would hide them.
let viewer;
let evidence;
let opinions = [];
let chosen = "";

const keyOf = (at) => `${at.level}:${at.x}:${at.y}`;
const sign = (value) => (value >= 0 ? "for" : "against");
const subjectOf = (part) => part.feature ?? keyOf(part);
const tell = (text) => { page.message.textContent = text; };

function openSlide(facts) {
  const { width, height, levels, tile, version } = facts;
  const address = `${data}/slides/${encodeURIComponent(slide)}/tiles`;
  viewer = OpenSeadragon({
    element: page.slide,
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: true,
    navigatorPosition: "BOTTOM_LEFT",
    animationTime: 0.6,
    maxZoomPixelRatio: 4,
    gestureSettingsMouse: { clickToZoom: false },
    tileSources: {
      width, height, tileSize: tile, minLevel: 0, maxLevel: levels - 1,
      getTileUrl: (level, x, y) => `${address}/${level}/${x}_${y}.jpg?v=${encodeURIComponent(version)}`,
    },
  });
  window.viewer = viewer; // For the console and for tests.
  return new Promise((resolve, reject) => {
    viewer.addOnceHandler("open", resolve);
    viewer.addOnceHandler("open-failed", (event) => reject(new Error(event.message)));
  });
}

const rectangle = (at) => viewer.viewport.imageToViewportRectangle(at.x, at.y, at.size0, at.size0);

function flyTo(at) {
  const around = rectangle(at);
  const wide = new OpenSeadragon.Rect(
    around.x - (around.width * (CONTEXT - 1)) / 2, around.y - (around.height * (CONTEXT - 1)) / 2,
    around.width * CONTEXT, around.height * CONTEXT);
  viewer.viewport.fitBounds(wide);
  chosen = keyOf(at);
  drawPlaces();
  select(at);
}

function select(at) {
  const key = keyOf(at);
  for (const node of document.querySelectorAll("[data-place]")) {
    node.classList.toggle("chosen", node.dataset.place === key);
  }
}

const atLevel = (part) => page.level.value === ALL || part.level === page.level.value;

function placesHere() {
  return evidence.instances.filter((each) => each.slide_id === slide && atLevel(each));
}

function listLevels() {
  const levels = [...new Set(evidence.instances.map((each) => each.level))];
  const before = page.level.value;
  page.level.replaceChildren(...[ALL, ...levels].map((level) => element("option", { value: level }, level)));
  page.level.value = levels.includes(before) ? before : ALL;
  page.level.parentElement.hidden = levels.length < 2;
}

function drawPlaces() {
  viewer.clearOverlays();
  const places = placesHere();
  const strongest = Math.max(...places.filter((each) => each.size0 < SMALL).map((each) => Math.abs(each.score)));
  const here = places.filter((each, place) => place < page.most.value || keyOf(each) === chosen);
  // The strongest last, so that they lie on top.
  for (const each of here.reverse()) {
    const key = keyOf(each);
    const words = `${each.rank}: ${each.level}, ${each.score.toFixed(4)} ${sign(each.score)} ${evidence.towards}`;
    const small = each.size0 < SMALL;
    const box = element("div", {
      class: `place ${sign(each.score)}${small ? " small" : ""}`, "data-place": key, title: words,
      style: `--strength:${Math.abs(each.score) / strongest}`,
    }, ...(small ? [] : [element("b", {}, String(each.rank))]));
    new OpenSeadragon.MouseTracker({ element: box, clickHandler: (event) => event.quick && choosePlace(each) });
    viewer.addOverlay({ element: box, location: rectangle(each) });
  }
}

function choosePlace(at) {
  select(at);
  document.querySelector(`aside [data-place="${keyOf(at)}"]`)?.scrollIntoView({ block: "center" });
}

async function say(part, verdict, comment) {
  const user = page.user.value.trim();
  if (!user) {
    page.user.focus();
    return tell("Type your name above first: opinions are recorded with it.");
  }
  localStorage.setItem("user", user);
  const statement = {
    asset: page.show.value, slide_id: slide, subject: subjectOf(part), verdict, comment, user,
    model: evidence.model.name, model_version: evidence.model.version,
  };
  try {
    opinions.push(await fetchJson(`${data}/opinions`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(statement),
    }));
    tell("Recorded.");
    drawLists();
  } catch (error) {
    tell(`Not recorded: ${error.message}`);
  }
}

function opinionRow(part) {
  const said = opinions.filter((each) => each.subject === subjectOf(part)).map((each) => element("li", {},
    `${each.user}, ${each.time.slice(0, 16).replace("T", " ")}: ${each.verdict === "none" ? "" : each.verdict} ${each.comment}`));
  const text = element("input", { placeholder: "comment", maxlength: 4000, "aria-label": "Comment" });
  const button = (verdict, words) => element("button", {
    type: "button", onclick: () => say(part, verdict, text.value),
  }, words);
  return element("details", { open: said.length > 0 },
    element("summary", {}, said.length ? `${said.length} opinion${said.length > 1 ? "s" : ""}` : "your opinion"),
    element("ul", {}, ...said), text, button("agree", "agree"), button("disagree", "disagree"),
    button("none", "comment only"));
}

function bar(value, largest) {
  const share = largest > 0 ? Math.abs(value) / largest : 0;
  return element("span", { class: `bar ${sign(value)}`, style: `--share:${share}` });
}

function featureRow(part, largest) {
  const amount = part.contribution ?? part.score;
  const placed = part.x !== null && part.x !== undefined;
  const here = placed && part.slide_id === slide;
  const words = part.feature ?? `${part.level} at ${part.x}, ${part.y}`;
  let name = element("span", { class: "feature" }, words);
  if (here) name = element("button", { type: "button", class: "feature fly", onclick: () => flyTo(part) }, words);
  else if (placed) {
    name = element("a", { class: "feature", href: `/${cohort}/slides/${encodeURIComponent(part.slide_id)}?show=${page.show.value}` },
      `${words} on ${part.slide_id}`);
  }
  let value = "";
  if ("value" in part) value = part.value === null ? "missing" : `value ${Number(part.value.toPrecision(4))}`;
  return element("li", { value: part.rank, "data-place": placed ? keyOf(part) : undefined },
    name, element("span", { class: "value" }, value),
    element("span", { class: "amount" }, `${amount >= 0 ? "+" : ""}${amount.toFixed(4)}`),
    bar(amount, largest), opinionRow(part));
}

function drawLists() {
  const places = placesHere().slice(0, Number(page.most.max));
  const kinds = {
    imaging: evidence.items.length ? evidence.items.filter((item) => item.kind === "imaging" && atLevel(item)) : places,
    omics: evidence.items.filter((item) => item.kind === "omics"),
    clinical: evidence.items.filter((item) => item.kind === "clinical"),
  };
  const amounts = [...evidence.items.map((item) => item.contribution), ...(evidence.items.length ? [] : places.map((p) => p.score))];
  const largest = Math.max(0, ...amounts.map(Math.abs));
  for (const [kind, parts] of Object.entries(kinds)) {
    page[kind].hidden = parts.length === 0;
    page[kind].querySelector("ol").replaceChildren(...parts.map((part) => featureRow(part, largest)));
  }
}

function drawPrediction() {
  const figures = Object.entries(evidence.prediction).map(([name, value]) => element("li", {}, `${name} ${value.toFixed(3)}`));
  page.prediction.replaceChildren(
    element("p", {}, `Patient ${evidence.patient_id}, ${evidence.model.name} version ${evidence.model.version}`),
    element("ul", {}, ...figures),
    element("p", { class: "small" }, `${evidence.meaning}. Bars to the right speak for ${evidence.towards}.`,
      evidence.weights ? ` Embeddings: ${evidence.weights}.` : "",
      evidence.seen_in_training ? " The model was fitted to this patient among others: this is no forecast." : ""));
}

async function load() {
  tell("");
  history.replaceState(null, "", `?show=${page.show.value}`);
  const where = `slide_id=${encodeURIComponent(slide)}&asset=${encodeURIComponent(page.show.value)}`;
  try {
    [evidence, opinions] = await Promise.all([
      fetchJson(`${data}/slides/${encodeURIComponent(slide)}/evidence/${page.show.value}`),
      fetchJson(`${data}/opinions?${where}`),
    ]);
  } catch (error) {
    viewer?.clearOverlays();
    for (const part of ["prediction", "imaging", "omics", "clinical"]) page[part].hidden = true;
    return tell(error.message);
  }
  page.prediction.hidden = false;
  drawPrediction();
  listLevels();
  drawLists();
  drawPlaces();
}

document.title = slide;
document.querySelector("h1").textContent = slide;
page.user.value = localStorage.getItem("user") ?? (await fetchJson("/api/cohorts")).user;
try {
  const facts = await fetchJson(`${data}/slides/${encodeURIComponent(slide)}`);
  page.show.replaceChildren(...Object.entries(facts.shows).map(
    ([asset, title]) => element("option", { value: asset }, title)));
  page.show.value = new URLSearchParams(location.search).get("show") ?? Object.keys(facts.shows)[0];
  await openSlide(facts);
  page.show.addEventListener("change", load);
  page.level.addEventListener("change", () => { drawLists(); drawPlaces(); });
  page.most.addEventListener("input", () => evidence && drawPlaces());
  await load();
} catch (error) {
  tell(error.message);
}
