// The page: its state lies in the address, so that a link shares it; `render` shows what the state says.

import { download, jsonBody, points, post, query, request } from "./api.js";
import { compare } from "./compare.js";
import { colorOf, PointMap, rampGradient } from "./map.js";
import { artists, licenseOf, Player } from "./player.js";

const $ = id => document.getElementById(id);
const RESULTS = 30, LASSO_TRACKS = 100, REASONS = 4, SEARCH_WAIT_MS = 150, ROUTE_STEPS = 12;
const known = new Map();  // tracks by id that the service has described

const element = (name, properties = {}, ...children) => {
  const { label, ...rest } = properties, created = Object.assign(document.createElement(name), rest);
  if (label) { created.setAttribute("aria-label", label); created.title = label; }
  created.append(...children.filter(child => child !== null && child !== undefined));
  return created;
};
const say = text => { $("status").textContent = text; };
const remember = tracks => { for (const track of tracks) known.set(track.track_id, track); return tracks; };

// ---- state

const LISTS = ["like", "unlike", "tray", "route"];
const NAME_FILTERS = ["genres", "artists", "tags", "not_tags"], YEAR_FILTERS = ["year_from", "year_to"];
const FILTERS = [...NAME_FILTERS, ...YEAR_FILTERS];
function readState() {
  const parameters = new URLSearchParams(location.hash.slice(1)), state = {};
  for (const name of LISTS) state[name] = parameters.getAll(name);
  for (const name of ["q", "text", "color", "compare", ...FILTERS]) state[name] = parameters.get(name) ?? "";
  state.diversity = Math.min(1, Math.max(0, Number(parameters.get("diversity")) || 0));
  return state;
}
let state = readState(), waiting = 0;  // the timer of a search that is being typed
function change(changes, replace = false) {
  clearTimeout(waiting);
  const { diversity, ...rest } = { ...state, ...changes };
  const hash = query({ ...rest, diversity: diversity || "" });
  history[replace ? "replaceState" : "pushState"](null, "", `${location.pathname}#${hash}`);
  state = readState();
  render();
}
const NO_QUESTION = { like: [], unlike: [], route: [], q: "", text: "", compare: "" };
const select = id => change({ ...NO_QUESTION, like: [id] });
const without = (list, id) => list.filter(other => other !== id);
const toTray = ids => change({ tray: [...state.tray, ...ids.filter(id => !state.tray.includes(id))] }, true);

// The filters of the state as the service takes them: names in lists, years as numbers.
function filters() {
  const chosen = {};
  for (const name of NAME_FILTERS) {
    const names = state[name].split(",").map(value => value.trim()).filter(Boolean);
    if (names.length) chosen[name] = names;
  }
  for (const name of YEAR_FILTERS) if (state[name]) chosen[name] = Number(state[name]);
  return chosen;
}

// ---- player and list

const player = new Player(say, playing => {
  for (const button of document.querySelectorAll("button[data-play]")) {
    const is = button.dataset.play === playing;
    button.textContent = is ? "▮▮" : "▶"; button.setAttribute("aria-label", `${is ? "Pause" : "Play"} ${button.dataset.title}`);
  }
});

let shown = [];  // the tracks of the list
let current = -1;
const after = (tracks, id) => tracks.slice(tracks.findIndex(track => track.track_id === id) + 1);

function playButton(track, tracks) {
  const button = element("button", { className: "small", label: `Play ${track.title}`, textContent: player.playing === track.track_id ? "▮▮" : "▶" });
  button.dataset.play = track.track_id; button.dataset.title = track.title;
  button.onclick = () => player.toggle(track, after(tracks(), track.track_id));
  return button;
}

// What a result shares with the liked track that is nearest to it.
function reason(match, seed) {
  if (!seed) return "";
  const tags = new Set(seed.tags.map(({ tag }) => tag)), common = match.track.tags.map(({ tag }) => tag).filter(tag => tags.has(tag));
  const genres = match.track.genres.filter(genre => seed.genres.includes(genre));
  const shared = [...new Set([...genres, ...common])].slice(0, REASONS);
  const beside = state.like.length > 1 ? `near “${seed.title}”` : "";
  return [beside, shared.length ? `shares ${shared.join(", ")}` : ""].filter(Boolean).join(", ");
}

function row(track, match) {
  const details = element("small", {}, [artists(track), track.album, track.genres.join(", ")].filter(Boolean).join(" · "));
  if (track.license) details.append(" · ", licenseOf(track));
  const title = element("button", { className: "title", textContent: track.title });
  title.onclick = () => select(track.track_id);
  const seed = match && known.get(match.nearest_seed ?? state.like[0]);
  const why = match ? reason(match, seed) : track.tags.map(({ tag }) => tag).join(", ");
  const item = element("li", {}, playButton(track, () => shown),
    element("span", { className: "name" }, title, details, why && element("small", { className: "why", textContent: why })));
  if (match) {
    const value = element("button", { className: "similarity", textContent: match.similarity.toFixed(3), title: "Similarity, from 0 to 1; click for the cosine" });
    value.onclick = () => { value.textContent = value.textContent.startsWith("cos") ? match.similarity.toFixed(3) : `cos ${(match.cosine ?? NaN).toFixed(2)}`; };
    item.append(value);
  }
  const like = element("button", { className: "small", textContent: "♥", label: `More like ${track.title}` });
  like.onclick = () => change({ ...NO_QUESTION, like: [...without(state.like, track.track_id), track.track_id], unlike: without(state.unlike, track.track_id) });
  const unlike = element("button", { className: "small", textContent: "⊘", label: `Less like ${track.title}` });
  unlike.onclick = () => change({ unlike: [...without(state.unlike, track.track_id), track.track_id], like: without(state.like, track.track_id) });
  unlike.hidden = !state.like.length || state.like.includes(track.track_id);
  const add = element("button", { className: "small", textContent: "+", label: `Add ${track.title} to the playlist` });
  add.onclick = () => toTray([track.track_id]);
  item.append(like, unlike, add);
  return item;
}

function showList(text, tracks, matches) {
  say(text);
  shown = remember(tracks); current = -1;
  $("list").replaceChildren(...tracks.map((track, number) => row(track, matches?.[number])));
}

function moveTo(number) {
  const items = $("list").children;
  if (!items.length) return;
  current = Math.min(items.length - 1, Math.max(0, number));
  for (const [place, item] of [...items].entries()) item.classList.toggle("current", place === current);
  items[current].querySelector(".title").focus();
  items[current].scrollIntoView({ block: "nearest" });
}

// ---- questions

const titled = track => `“${track.title}” by ${artists(track)}`;
const describe = async ids => {
  const missing = ids.filter(id => !known.has(id));
  await Promise.all(missing.map(async id => {
    try { remember([await request(`v1/tracks/${encodeURIComponent(id)}`)]); } catch { /* it has left the index */ }
  }));
  return ids.map(id => known.get(id)).filter(Boolean);
};

let describesSound = false;  // whether the words of the search also describe a sound
async function answer() {
  describesSound = false;
  const { like, unlike, route, diversity } = state;
  if (state.compare) {
    const track = await compare($("comparison"), state.compare, element, playButton, () => attempt(compareAnother()));
    return [`Which list sounds more like ${titled(track)}?`, [track]];
  }
  if (route.length === 2) {
    const { tracks } = await request(`v1/path?${query({ from: route[0], to: route[1], steps: ROUTE_STEPS, ...filters() })}`);
    return [`A route of ${tracks.length} tracks from ${titled(tracks[0])} to ${titled(tracks.at(-1))}:`, tracks];
  }
  if (like.length === 1 && !unlike.length) {
    const { track, similar } = await request(`v1/tracks/${encodeURIComponent(like[0])}/similar?${query({ k: RESULTS, diversity, ...filters() })}`);
    remember([track]);
    return [`Most similar to ${titled(track)}:`, similar.map(match => match.track), similar];
  }
  if (like.length) {
    await describe([...like, ...unlike]);
    const ids = list => list.map(id => ({ id }));
    const { similar } = await post("v1/recommend", { like: ids(like), unlike: ids(unlike), k: RESULTS, diversity, filters: filters() });
    return ["Recommended:", similar.map(match => match.track), similar];
  }
  if (state.text) {
    const { similar } = await request(`v1/similar?${query({ text: state.text, k: RESULTS, diversity, ...filters() })}`);
    return [`Tracks that sound like “${state.text}”:`, similar.map(match => match.track), similar];
  }
  const { tracks, weights } = await request(`v1/tracks?${query({ q: state.q, limit: RESULTS })}`);
  describesSound = Object.keys(weights).length > 0;
  return [tracks.length ? (state.q ? "Choose a track to find similar ones." : "Some tracks; choose one, here or on the map.")
    : state.q ? "No title or artist matches these words." : "The index is empty.", tracks];
}

let latest = 0;
let answered = null;  // the question whose answer is shown, or requested
async function render() {
  $("words").value = document.activeElement === $("words") ? $("words").value : state.text || state.q;
  $("diversity").value = state.diversity; $("adventure").hidden = !(state.like.length || state.text);
  $("color").value = state.color || coloring().color;
  for (const input of document.querySelectorAll("[data-filter]")) if (input !== document.activeElement) input.value = state[input.id];
  const count = FILTERS.filter(name => state[name]).length;
  $("filter-count").textContent = count ? `(${count})` : "";
  $("comparison").hidden = !state.compare; $("tray").hidden = Boolean(state.compare);
  $("filters").hidden = !(state.like.length || state.text || state.route.length);
  renderTray();
  recolor();
  const { tray, color, ...question } = state, text = JSON.stringify(question);
  if (text === answered) return;
  answered = text;
  const number = ++latest;
  renderSeeds();
  const slow = setTimeout(() => { if (number === latest) say("Searching…"); }, 300);
  try {
    const [title, tracks, matches] = await answer();
    if (number !== latest) return;
    showList(tracks.length || !Object.keys(filters()).length ? title : "No track matches the filters.", tracks, matches);
    renderSeeds();
    offerDescription();
    mark(number);
  } catch (error) {
    if (number !== latest) return;
    answered = null;
    showList(error.message, []);
    const again = element("button", { textContent: "Try again" });
    again.onclick = render;
    $("status").append(" ", again);
  } finally { clearTimeout(slow); }
}

// Words may also describe a sound.
function offerDescription() {
  if (!describesSound) return;
  const link = element("button", { className: "title", id: "described", textContent: `Tracks that sound like “${state.q}”` });
  link.onclick = () => change({ ...NO_QUESTION, text: state.q });
  $("list").prepend(element("li", {}, link));
}

function renderSeeds() {
  const chip = (id, list, sign) => {
    const remove = element("button", { textContent: "×", label: `Remove ${known.get(id)?.title ?? id}` });
    remove.onclick = () => change({ [list]: without(state[list], id) });
    return element("span", {}, `${sign} ${known.get(id)?.title ?? id}`, remove);
  };
  $("seeds").replaceChildren(...state.like.map(id => chip(id, "like", "♥")), ...state.unlike.map(id => chip(id, "unlike", "⊘")));
}

async function compareAnother() {
  const number = Math.floor(Math.random() * map.data.count), next = (number + 1) % map.data.count;
  const [track] = (await tracksAt([number, next])).filter(one => one.track_id !== state.compare);
  change({ ...NO_QUESTION, compare: track.track_id });
}

// ---- map

const tip = $("tip");
let hoverNumber = 0;
const pointOf = number => `${map.data.shards[number]}.${map.data.labels[number]}`;
async function tracksAt(numbers) {
  if (!numbers.length) return [];
  try {
    return remember((await request(`v1/points/tracks?${query({ version: map.data.version, point: numbers.map(pointOf) })}`)).tracks);
  } catch (error) {
    if (error.status === 404) loadPoints();  // the service has another version of the index by now
    throw error;
  }
}
const attempt = task => task.catch(error => say(error.message));

const map = new PointMap($("points"), $("marks"), {
  onHover(number, x, y) {
    const latestHover = ++hoverNumber;
    tip.hidden = true; $("points").style.cursor = number === undefined ? "" : "pointer";
    if (number === undefined) return;
    setTimeout(async () => {
      if (latestHover !== hoverNumber) return;
      const [track] = await tracksAt([number]).catch(() => []);
      if (!track || latestHover !== hoverNumber) return;
      tip.replaceChildren(track.title, element("small", { textContent: [artists(track), track.genres.join(", ")].filter(Boolean).join(" · ") }));
      tip.hidden = false;
      tip.style.left = `${Math.max(4, Math.min(x + 14, $("plot").clientWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${Math.max(4, y - tip.offsetHeight - 10)}px`;
    }, 60);
  },
  onPick: number => attempt(tracksAt([number]).then(([track]) => { select(track.track_id); player.play(track); })),
  onLasso: numbers => attempt(tracksAt(numbers.slice(0, LASSO_TRACKS)).then(tracks => {
    if (!tracks.length) { say("No track lies in this region."); return; }
    toTray(tracks.map(track => track.track_id));
    say(`${tracks.length} tracks of the region are in the playlist${numbers.length > tracks.length ? `, of ${numbers.length}` : ""}.`);
  })),
  onView(bounds) {
    box = bounds.join(",");
    if (isSample()) loadPoints();
  },
});

let loading = null;
let box;  // what the map shows, once it was moved
let colored = "";
let withoutGenres = false;  // then the strongest tag is the first color
function coloring() {
  const color = state.color || (withoutGenres ? "tag" : "genre"), seed = state.like.at(-1);
  if (color.startsWith("tag:")) return { tag: color.slice(4) };
  if (color !== "similarity") return { color };
  return seed ? { similar_to: seed } : { color: "genre" };
}

// Whether the index has more tracks than the map shows at once.
const isSample = () => Boolean(map.data) && map.data.tracks > map.data.count;

async function loadPoints() {
  loading?.abort();
  const controller = loading = new AbortController(), how = coloring();
  colored = JSON.stringify(how);
  try {
    const data = await points({ bbox: isSample() ? box : undefined, ...how }, controller.signal);
    map.show(data);
    renderLegend();
    if (how.color === "genre" && !withoutGenres && data.color.values.join() === "" && data.count) {
      withoutGenres = true;
      if (!state.color) render();
    }
  } catch (error) { if (error.name !== "AbortError") say(error.message); }
}

function recolor() {
  if (JSON.stringify(coloring()) !== colored) { map.hidden = new Set(); loadPoints(); }
}

function renderLegend() {
  const { color } = map.data;
  if (color.kind === "number") {
    const scale = element("span", { className: "scale" });
    scale.style.background = rampGradient;
    const shown = value => value === undefined ? "unknown" : Math.abs(value) <= 1 ? value.toFixed(2) : Math.round(value);
    const ends = element("li", { className: "ends" }, element("span", { textContent: shown(color.least) }), element("span", { textContent: shown(color.largest) }));
    $("legend").replaceChildren(element("li", {}, scale), ends);
    return;
  }
  $("legend").replaceChildren(...color.values.map((value, number) => {
    const dot = element("i");
    dot.style.background = colorOf(value, number);
    const name = value === "" ? "unknown" : value === "…" ? "others" : value;
    const button = element("button", {}, dot, `${name} (${color.counts[number]})`);
    button.setAttribute("aria-pressed", String(!map.hidden.has(value)));
    button.onclick = () => {
      const hidden = new Set(map.hidden);
      if (!hidden.delete(value)) hidden.add(value);
      map.setHidden(hidden);
      button.setAttribute("aria-pressed", String(!hidden.has(value)));
    };
    return element("li", {}, button);
  }));
}

// Lines from the selected track to its true neighbours, wherever the map has put them.
async function mark(number) {
  const seed = state.route.length ? shown[0]?.track_id : state.like.at(-1);
  if (!seed) { map.mark(null, []); return; }
  const ids = [seed, ...shown.slice(0, 15).map(track => track.track_id)];
  try {
    const { positions } = await request(`v1/points/positions?${query({ track: [...new Set(ids)] })}`);
    if (number === latest) map.mark(positions[seed], ids.slice(1).map(id => positions[id]).filter(Boolean));
  } catch { map.mark(null, []); }
}

// ---- playlist

let trayShown = "";
async function renderTray() {
  $("tray-count").textContent = state.tray.length;
  for (const id of ["tray-play", "tray-export", "tray-share", "tray-clear"]) $(id).disabled = !state.tray.length;
  $("tray-path").disabled = state.tray.length < 2;
  const text = JSON.stringify(state.tray);
  if (text === trayShown) return;
  trayShown = text;
  const tracks = await describe(state.tray);
  if (text !== trayShown) return;
  $("tray-list").replaceChildren(...tracks.map((track, place) => {
    const move = (by, sign, name) => {
      const button = element("button", { className: "small", textContent: sign, label: `Move ${track.title} ${name}`, disabled: !state.tray[place + by] });
      button.onclick = () => {
        const tray = [...state.tray];
        [tray[place], tray[place + by]] = [tray[place + by], tray[place]];
        change({ tray }, true);
      };
      return button;
    };
    const title = element("button", { className: "title", textContent: track.title });
    title.onclick = () => select(track.track_id);
    const remove = element("button", { className: "small", textContent: "×", label: `Remove ${track.title} from the playlist` });
    remove.onclick = () => change({ tray: without(state.tray, track.track_id) }, true);
    return element("li", {}, playButton(track, () => tracks), element("span", { className: "name" }, title, element("small", { textContent: artists(track) })),
      move(-1, "↑", "up"), move(1, "↓", "down"), remove);
  }));
}

$("tray-play").onclick = async () => { const [first, ...rest] = await describe(state.tray); if (first) player.play(first, rest); };
$("tray-path").onclick = () => change({ ...NO_QUESTION, route: [state.tray[0], state.tray.at(-1)] });
$("tray-clear").onclick = () => change({ tray: [] }, true);
$("tray-share").onclick = () => navigator.clipboard.writeText(location.href).then(() => say("The link to this page and playlist is copied."), () => say("Copy the address of this page: it holds the playlist."));
$("tray-export").onclick = () => attempt((async () => {
  const format = $("tray-format").value;
  const url = URL.createObjectURL(await download(`v1/export?format=${format}`, jsonBody({ tracks: state.tray })));
  element("a", { href: url, download: `songray.${format}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
})());

// ---- search, keys, files

$("words").oninput = () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => change({ ...NO_QUESTION, q: $("words").value }, Boolean(state.q)), SEARCH_WAIT_MS);
};
for (const input of document.querySelectorAll("[data-filter]")) input.onchange = () => change({ [input.id]: input.value.trim() }, true);
$("filter-clear").onclick = () => change(Object.fromEntries(FILTERS.map(name => [name, ""])), true);
$("diversity").onchange = event => change({ diversity: Number(event.target.value) }, true);
$("color").onchange = event => change({ color: event.target.value }, true);
$("zoom-in").onclick = () => map.zoomBy(1.6);
$("zoom-out").onclick = () => map.zoomBy(1 / 1.6);
$("zoom-fit").onclick = () => map.fit();
$("legend-box").open = !matchMedia("(max-width: 56rem)").matches;  // there it would cover the map
$("compare-button").onclick = () => attempt(compareAnother());
$("help-button").onclick = () => $("help").showModal();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => map.draw());

addEventListener("keydown", event => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input:not([type=range])"), range = event.target.matches("input[type=range], select");
  if (event.key === "Escape") { event.target.blur(); $("words").value = ""; change(NO_QUESTION); return; }
  if (event.key === "ArrowDown" && !range) { event.preventDefault(); moveTo(current + 1); return; }
  if (event.key === "ArrowUp" && !range && !typing) { event.preventDefault(); moveTo(current - 1); return; }
  if (typing || range) return;
  if (event.key === "/") { event.preventDefault(); $("words").focus(); $("words").select(); }
  else if (event.key === "?") $("help").showModal();
  else if (event.key === " " && !event.target.matches("button:not(.title)")) {
    event.preventDefault();
    const track = shown[current] ?? player.track ?? known.get(state.like.at(-1));
    if (track) player.toggle(track, after(shown, track.track_id));
  }
});

addEventListener("dragover", event => { if (event.dataTransfer?.types.includes("Files")) { event.preventDefault(); document.body.classList.add("dropping"); } });
addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", async event => {
  const [file] = event.dataTransfer?.files ?? [];
  document.body.classList.remove("dropping");
  if (!file) return;
  event.preventDefault();
  const number = ++latest, form = new FormData();
  form.append("audio", file);
  answered = null;
  say(`Listening to ${file.name}…`);
  try {
    const { similar } = await request(`v1/similar?k=${RESULTS}`, { method: "POST", body: form });
    if (number !== latest) return;
    showList(`Most similar to the file ${file.name}:`, similar.map(match => match.track), similar);
    const { positions } = await request(`v1/points/positions?${query({ track: shown.slice(0, 5).map(track => track.track_id) })}`);
    const near = Object.values(positions), mean = axis => near.reduce((sum, place) => sum + place[axis], 0) / near.length;
    if (near.length) map.mark([mean(0), mean(1)], near);  // among its neighbours
  } catch (error) { if (number === latest) say(error.message); }
});

// What the index has: tags, as colors and as filters, how far its map can be trusted, and runs to compare.
const METHODS = { tsne: "t-SNE", umap: "UMAP", pca: "PCA" };
async function describeIndex() {
  const { tags, map: facts, compared } = await request("v1/stats");
  $("map-facts").textContent = facts ? `${METHODS[facts.method]} map: trustworthiness ${facts.trustworthiness.toFixed(2)}, continuity ${facts.continuity.toFixed(2)}` : "Map: principal components";
  $("map-facts").title = "From 0 to 1: how many neighbours on the map are near in sound, and how many that are near in sound are neighbours on it";
  $("color").querySelector("[value=cluster]").hidden = !facts?.clusters;
  $("compare-button").hidden = !compared;
  $("color-tags").replaceChildren(...tags.map(tag => element("option", { value: `tag:${tag}`, textContent: tag })));
  $("color-tags").hidden = !tags.length;
  $("tag-names").replaceChildren(...tags.map(tag => element("option", { value: tag })));
  if (state.color) $("color").value = state.color;
}

addEventListener("popstate", () => { state = readState(); render(); });
addEventListener("online", () => render());
render();
describeIndex().catch(() => {});  // where the service fails, the list of tracks says so
