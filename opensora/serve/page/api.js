// The HTTP interface of the service. Addresses are relative, so that a proxy may serve the page in a folder.

export class ServiceError extends Error {
  constructor(status, code, message, param = null) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }

  get isUnreachable() {
    return this.status === 0;
  }
}

const UNREACHABLE = "The service cannot be reached.";
let onRefused = () => {};

/** Calls `handler` whenever the service wants a token. */
export const whenRefused = (handler) => (onRefused = handler);

async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, "unreachable", UNREACHABLE);
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  if ([502, 503, 504].includes(answer.status) && !isJson(answer)) {
    throw new ServiceError(0, "unreachable", UNREACHABLE); // of a proxy
  }
  const found = isJson(answer) ? (await answer.json()).error : null;
  if (answer.status === 401 && path !== "session") onRefused();
  throw new ServiceError(
    answer.status,
    found?.code ?? "error",
    found?.message ?? `The service answered with status ${answer.status}.`,
    found?.param ?? null,
  );
}

const isJson = (answer) => (answer.headers.get("Content-Type") ?? "").startsWith("application/json");

function post(path, body, signal) {
  return request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body ?? {}),
    signal,
  });
}

const query = (parameters) => new URLSearchParams(Object.entries(parameters).filter(([, value]) => value));

export const service = () => request("v1/service");
export const signIn = (token) => post("session", { token });
export const listVideos = (parameters, signal) => request(`v1/videos?${query(parameters)}`, { signal });
export const getVideo = (id) => request(`v1/videos/${id}`);
export const createVideo = (body) => post("v1/videos", body);
export const cancelVideo = (id) => post(`v1/videos/${id}/cancel`);
export const commandOf = async (id) => (await request(`v1/videos/${id}/command`)).command;
export const estimate = (body, signal) => post("v1/estimate", body, signal);

export function deleteVideo(id) {
  return request(`v1/videos/${id}`, { method: "DELETE", headers: { "Content-Type": "application/json" } });
}

export function upload(file) {
  const body = new FormData();
  body.append("file", file, file.name);
  return request("v1/files", { method: "POST", headers: { "X-Requested-With": "opensora" }, body });
}

export const eventsUrl = "v1/events";
export const contentUrl = (id) => `v1/videos/${id}/content`;
export const thumbnailUrl = (id) => `v1/videos/${id}/content?variant=thumbnail`;
export const metadataUrl = (id) => `v1/videos/${id}/content?variant=metadata`;
export const downloadUrl = (id) => `v1/videos/${id}/content?download=1`;
export const fileUrl = (id) => `v1/files/${id}/content`;
export const previewUrl = (job) => job.preview?.replace(/^\//, "");
