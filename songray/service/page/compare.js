// The listening test: the neighbours of one track by two runs, without names, and which list is preferred.

import { jsonBody, query, request, send } from "./api.js";
import { artists } from "./player.js";

const SIDES = { left: "A", right: "B" }, COLUMNS = ["session", "at", "track_id", "left", "right", "preferred"];
const session = Array.from(crypto.getRandomValues(new Uint8Array(12)), byte => byte.toString(16).padStart(2, "0")).join("");
const unstored = [];  // judgements that the service could not store
const wins = new Map();  // by run, in this session

// Show the two lists of a track in `place`; `build` makes elements, `playButton` a button for a track of a list,
// and `next` goes on with another track.
export async function compare(place, trackId, build, playButton, next) {
  const { track, lists } = await request(`v1/comparison?${query({ track: trackId })}`);
  const [left, right] = lists.map(list => list.run);
  const columns = Object.values(SIDES).map((name, side) => {
    const tracks = lists[side].similar.map(match => match.track);
    const rows = tracks.map(one => build("li", {}, playButton(one, () => tracks),
      build("span", { className: "name" }, one.title, build("small", { textContent: artists(one) }))));
    return build("div", {}, build("h3", { textContent: name }), build("ol", {}, ...rows));
  });
  const answer = build("p", { className: "wide" });
  answer.setAttribute("role", "status");
  const choices = build("div", { className: "wide choices" });
  const choose = (preferred, text) => {
    const button = build("button", { textContent: text });
    button.onclick = () => judge({ session, track_id: trackId, left, right, preferred }, choices, answer, build);
    return button;
  };
  const another = build("button", { textContent: "Another track" });
  another.onclick = next;
  choices.append(choose("left", "A sounds more like it"), choose("right", "B does"), choose("neither", "No difference"));
  place.replaceChildren(...columns, choices, answer, build("div", { className: "wide" }, another));
  return track;
}

async function judge(judgement, choices, answer, build) {
  for (const button of choices.children) button.disabled = true;
  const { left, right, preferred } = judgement;
  for (const run of [left, right]) wins.set(run, (wins.get(run) ?? 0) + (judgement[preferred] === run));
  const score = [left, right].map(run => `${run} ${wins.get(run)}`).join(", ");
  answer.textContent = `A was ${left}, B was ${right}. You preferred: ${score}.`;
  try {
    await send("v1/judgements", jsonBody(judgement));
  } catch (error) {
    unstored.push({ ...judgement, at: new Date().toISOString() });
    const link = build("a", { textContent: `Download judgements (${unstored.length})`, download: "judgements.csv" });
    const lines = [COLUMNS, ...unstored.map(one => COLUMNS.map(name => `"${one[name].replaceAll('"', '""')}"`))];
    link.href = URL.createObjectURL(new Blob([lines.map(line => line.join(",")).join("\n") + "\n"], { type: "text/csv" }));
    answer.append(` ${error.message} `, link);
  }
}
