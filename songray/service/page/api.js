// Requests to the service, with the key that it asks for.

const dialog = document.getElementById("key");

function enteredKey(problem) {
  document.getElementById("key-problem").textContent = problem;
  const value = document.getElementById("key-value");
  value.value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise(resolve => {
    document.getElementById("key-form").onsubmit = () => resolve(value.value.trim());
    dialog.oncancel = () => resolve("");
  });
}

let nextKey = null;  // the key of the open dialog, one for all requests that need it

export async function send(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(navigator.onLine ? "The service does not answer: is it running?" : "You are offline.");
  }
  if (response.status === 401) {
    nextKey ??= enteredKey(key ? "This key is not valid." : "").finally(() => { nextKey = null; });
    const entered = await nextKey;
    if (entered) { sessionStorage.setItem("key", entered); return send(path, options); }
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    const detail = typeof problem.detail === "string" ? problem.detail : response.statusText;
    throw Object.assign(new Error(detail), { status: response.status });
  }
  return response;
}

export const request = async (path, options) => (await send(path, options)).json();
export const download = async (path, options) => (await send(path, options)).blob();
export const post = (path, body) => request(path, jsonBody(body));
export const jsonBody = body =>
  ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const query = values => {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values))
    for (const one of [value].flat()) if (one !== undefined && one !== null && one !== "") parameters.append(name, one);
  return parameters.toString();
};

const TYPES = { int32: Int32Array, float32: Float32Array, uint16: Uint16Array };

// The binary columns of /v1/points: see the OpenAPI document.
export async function points(parameters, signal) {
  const buffer = await (await send(`v1/points?${query(parameters)}`, { signal })).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let offset = 4 + length;
  for (const { name, type } of head.columns) {
    head[`${name}s`] = new TYPES[type](buffer, offset, head.count);
    offset += head[`${name}s`].byteLength;
  }
  return head;
}
