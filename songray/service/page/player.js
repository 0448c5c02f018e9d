// The player: one audio element, a queue, and the media keys.

import { request } from "./api.js";

const $ = id => document.getElementById(id), audio = $("audio");
const clock = seconds => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

// The usual short name of a licence, of which catalogues state the URL or the name.
export function licenseName(license) {
  const [, kind, version] = license.match(/creativecommons\.org\/(?:licenses|publicdomain)\/([a-z-]+)\/([\d.]+)/) ?? [];
  if (!kind) return license;
  return `${kind === "zero" ? "CC0" : `CC ${kind.toUpperCase()}`} ${version}`;
}

// A licence as an element: a link where its URL is known; null where the catalogue states none.
export function licenseOf({ license }) {
  if (!license) return null;
  const isUrl = /^https?:\/\//.test(license), element = document.createElement(isUrl ? "a" : "span");
  element.className = "license";
  element.textContent = licenseName(license);
  if (isUrl) Object.assign(element, { href: license, target: "_blank", rel: "license noopener noreferrer" });
  return element;
}

export const artists = track => track.artist_names.join(", ") || "unknown artist";

export class Player {
  constructor(report, onChange) {
    Object.assign(this, { report, onChange, track: null, queue: [] });
    audio.onplay = audio.onpause = () => this.changed();
    audio.onended = () => this.next();
    audio.onerror = () => { if (this.track && audio.getAttribute("src")) this.explain(); };
    audio.ontimeupdate = audio.ondurationchange = () => {
      const length = Number.isFinite(audio.duration) ? audio.duration : 0;
      $("player-position").max = length || 1; $("player-position").value = audio.currentTime;
      $("player-time").textContent = `${clock(audio.currentTime)} / ${clock(length)}`;
    };
    $("player-position").oninput = event => { audio.currentTime = Number(event.target.value); };
    $("player-toggle").onclick = () => this.toggle();
    $("player-next").onclick = () => this.next();
    for (const [action, call] of Object.entries({
      play: () => audio.play(), pause: () => audio.pause(), nexttrack: () => this.next(),
    })) navigator.mediaSession?.setActionHandler(action, call);
  }

  get playing() { return this.track && !audio.paused ? this.track.track_id : null; }

  // Play a track, and then those of the queue.
  async play(track, queue = []) {
    this.track = track; this.queue = queue;
    $("player-title").textContent = `${track.title} · ${artists(track)}`;
    $("player-license").replaceChildren(licenseOf(track) ?? "");
    if (navigator.mediaSession) navigator.mediaSession.metadata = new MediaMetadata({ title: track.title, artist: artists(track), album: track.album ?? "" });
    try {
      const url = track.preview ?? (await request(`v1/tracks/${encodeURIComponent(track.track_id)}/audio`)).url.replace(/^\//, "");
      if (this.track !== track) return;
      audio.src = url;
      await audio.play();
    } catch (error) {
      if (error.name !== "AbortError" && error.name !== "NotSupportedError") this.report(error.message);
    }
    this.changed();
  }

  // An audio element does not tell why it failed: the service does.
  async explain() {
    const title = this.track.title, isOurs = new URL(audio.src, location.href).origin === location.origin;
    const answer = isOurs && await fetch(audio.src, { headers: { Range: "bytes=0-0" } }).catch(() => null);
    const problem = answer && !answer.ok ? await answer.json().catch(() => null) : null;
    this.report(`“${title}” cannot be played: ${problem?.detail ?? "its source does not answer, or its format is unknown to this browser"}.`);
    this.changed();
  }

  toggle(track = this.track, queue = []) {
    if (!track) return;
    if (track.track_id !== this.track?.track_id) this.play(track, queue);
    else if (audio.paused) audio.play().catch(() => this.explain());
    else audio.pause();
  }

  next() {
    const [track, ...rest] = this.queue;
    if (track) this.play(track, rest); else audio.pause();
  }

  changed() {
    $("player-toggle").textContent = audio.paused ? "▶" : "▮▮";
    this.onChange(this.playing);
  }
}
