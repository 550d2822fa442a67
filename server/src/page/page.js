// Agents are not trusted: everything they say goes in through textContent, nothing is parsed as markup.
"use strict";

const REFRESH = 2000; // ms between two looks at the server
const SOON = 30; // days before a certificate's end from which it is shown in red
const at = (id) => document.getElementById(id);
let chosen = null;

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

async function ask(path, options) {
  const response = await fetch(path, options);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error || response.statusText);
  return body;
}

function nameOf(agent) {
  const { identifying, non_identifying } = agent.attributes;
  return String(identifying["service.name"] ?? non_identifying["host.name"] ?? "agent");
}

function labelsOf(agent) {
  return Object.entries(agent.attributes.non_identifying).slice(0, 12);
}

function ago(time) {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000));
  if (seconds < 60) return seconds + " s ago";
  if (seconds < 3600) return Math.round(seconds / 60) + " min ago";
  return new Date(time).toLocaleString();
}

function connectionOf(agent) {
  if (!agent.connected) return ["disconnected", "quiet"];
  return agent.stale ? ["stale", "wait"] : ["connected", "good"];
}

function healthCell(agent) {
  const cell = make("td");
  const [connection, tone] = connectionOf(agent);
  const health = agent.health;
  if (health) {
    cell.append(make("div", health.healthy ? "healthy" : "unhealthy", "state " + (health.healthy ? "good" : "bad")));
    if (health.status) cell.append(make("small", health.status));
    if (health.last_error) cell.append(make("div", health.last_error, "error"));
  } else {
    cell.append(make("div", "not reported", "quiet"));
  }
  cell.append(make("small", [connection, agent.transport].filter(Boolean).join(" · "), tone));
  return cell;
}

function configCell(agent) {
  const cell = make("td");
  const status = agent.remote_config_status;
  const tones = { APPLIED: "good", APPLYING: "wait", FAILED: "bad", UNSET: "quiet" };
  const word = status ? status.status : "UNSET";
  cell.append(make("div", word, "state " + (tones[word] || "quiet")));
  if (status && status.hash) cell.append(make("small", status.hash.slice(0, 12)));
  if (status && status.error_message) cell.append(make("div", status.error_message, "error"));
  const assigned = agent.assigned_config;
  if (assigned && (!status || status.hash !== assigned.hash)) {
    const why = agent.assigned_config_failed ? " withheld: it failed here" : " waiting";
    cell.append(make("small", assigned.hash.slice(0, 12) + why, agent.assigned_config_failed ? "bad" : "wait"));
  }
  return cell;
}

function sizeOf(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let at = 0;
  for (; bytes >= 1024 && at < units.length - 1; at += 1) bytes /= 1024;
  return (at ? bytes.toFixed(1) : Math.round(bytes)) + " " + units[at];
}

function packageParts(name, pack) {
  const tones = { Installed: "good", InstallPending: "wait", Installing: "wait", Downloading: "wait", InstallFailed: "bad" };
  const changes = pack.offered_version && pack.offered_version !== pack.version;
  const versions = [pack.version, changes ? "→ " + pack.offered_version : ""].filter(Boolean).join(" ");
  const parts = [
    make("div", (name || "package") + " " + versions),
    make("div", pack.status, "state " + (tones[pack.status] || "quiet")),
  ];
  if (pack.download) {
    const bar = make("progress");
    bar.max = 100;
    bar.value = pack.download.percent;
    bar.setAttribute("aria-label", "download of " + name);
    const done = Math.round(pack.download.percent) + " % · " + sizeOf(pack.download.bytes_per_second) + "/s";
    parts.push(bar, make("small", done));
  }
  if (pack.error_message) parts.push(make("div", pack.error_message, "error"));
  return parts;
}

function packagesCell(agent) {
  const cell = make("td");
  for (const [name, pack] of Object.entries(agent.packages)) cell.append(...packageParts(name, pack));
  if (agent.packages_error) cell.append(make("div", agent.packages_error, "error"));
  const assigned = agent.assigned_packages;
  if (assigned && assigned.state === "waiting") {
    cell.append(make("small", assigned.hash.slice(0, 12) + " waiting", "wait"));
  } else if (!cell.firstChild) {
    cell.append(make("div", "none", "quiet"));
  }
  return cell;
}

function certificateCell(agent) {
  const cell = make("td");
  const own = agent.certificate;
  if (agent.revoked) cell.append(make("div", "revoked", "state bad"));
  if (own && !own.revoked) {
    const left = own.expired ? "expired" : own.days_left + " days left";
    const line = make("div", left, "state " + (own.expired || own.days_left < SOON ? "bad" : "good"));
    line.title = own.not_after;
    cell.append(line, make("small", own.serial.slice(-12)));
  } else if (!agent.revoked) {
    cell.append(make("div", "none of ours", "quiet"));
  }
  const offer = agent.offered_connection;
  if (offer && offer.outcome !== "applied") {
    cell.append(make("small", offer.hash.slice(0, 12) + " " + offer.outcome, offer.outcome === "failed" ? "bad" : "wait"));
    if (offer.error_message) cell.append(make("div", offer.error_message, "error"));
  }
  return cell;
}

function answerButton(csr, word) {
  const button = make("button", word, "plain");
  button.type = "button";
  button.dataset.decide = word.toLowerCase();
  button.dataset.uid = csr.instance_uid;
  button.setAttribute("aria-label", word + " the request of " + csr.instance_uid);
  return button;
}

function csrRow(csr) {
  const row = make("tr");
  const name = make("td", csr.common_name);
  name.append(make("small", "key " + csr.key_sha256.slice(0, 24)), make("small", ago(csr.received)));
  const answer = make("td");
  answer.append(answerButton(csr, "Approve"), " ", answerButton(csr, "Reject"));
  row.append(name, make("td", csr.why), answer);
  return row;
}

function rotationRow(rotation) {
  const tones = { applied: "good", failed: "bad", offered: "wait", waiting: "quiet" };
  const row = make("tr");
  const target = make("td", rotation.target);
  target.append(make("small", "#" + rotation.id + " · " + rotation.concurrency + " at a time"));
  const done = make("td");
  const bar = make("progress");
  bar.max = rotation.total;
  bar.value = rotation.agents.applied + rotation.agents.failed;
  bar.setAttribute("aria-label", "rotation " + rotation.id);
  const ended = rotation.ended ? (rotation.cancelled ? "cancelled " : "ended ") + ago(rotation.ended) : "running";
  done.append(bar, make("small", ended));
  const counts = make("td");
  for (const state of ["applied", "offered", "waiting", "failed"]) {
    if (rotation.agents[state]) counts.append(make("div", rotation.agents[state] + " " + state, "state " + tones[state]));
  }
  row.append(target, done, counts);
  return row;
}

function showCertificates(csrs, rotations) {
  at("certificates").hidden = csrs.length + rotations.length === 0;
  // A button that has the keyboard keeps it.
  const focused = document.activeElement && document.activeElement.dataset;
  const again = focused && focused.decide && [focused.uid, focused.decide];
  at("csrs").replaceChildren(...csrs.slice(0, 100).map(csrRow));
  at("rotations").replaceChildren(...rotations.map(rotationRow));
  for (const button of at("csrs").querySelectorAll("button")) {
    if (again && button.dataset.uid === again[0] && button.dataset.decide === again[1]) button.focus();
  }
}

function offerRow(offer) {
  const tones = { installed: "good", failed: "bad", without_packages: "quiet" };
  const row = make("tr");
  const target = make("td", offer.target);
  target.append(make("small", offer.hash.slice(0, 12)));
  const names = make("td");
  for (const [name, version] of Object.entries(offer.packages)) names.append(make("div", name + " " + version));
  const counts = make("td");
  for (const [state, count] of Object.entries(offer.agents)) {
    if (count) counts.append(make("div", count + " " + state.replace("_", " "), "state " + (tones[state] || "wait")));
  }
  if (!counts.firstChild) counts.append(make("div", "none", "quiet"));
  row.append(target, names, counts);
  return row;
}

function keptRow(pack) {
  const row = make("tr");
  const name = make("td", pack.name + " " + pack.version);
  name.append(make("small", pack.type + " · " + pack.sha256.slice(0, 12)));
  const signature = make("td");
  signature.append(pack.signature_size ? make("div", pack.signature_size + " bytes") : make("div", "none", "bad"));
  row.append(name, make("td", sizeOf(pack.size)), signature);
  return row;
}

function showPackages(offers, kept) {
  at("packages").hidden = offers.length + kept.length === 0;
  at("offers").replaceChildren(...offers.map(offerRow));
  at("kept").replaceChildren(...kept.map(keptRow));
}

function agentRow(agent) {
  const row = make("tr", undefined, agent.instance_uid === chosen ? "chosen" : "");
  row.dataset.uid = agent.instance_uid;
  const name = make("td");
  const open = make("button", nameOf(agent), "row");
  open.type = "button";
  name.append(open, make("small", agent.instance_uid));
  const labels = make("td");
  for (const [key, value] of labelsOf(agent)) {
    labels.append(make("span", key + "=" + (typeof value === "object" ? JSON.stringify(value) : value), "label"));
  }
  const seen = make("td", ago(agent.last_seen));
  seen.title = agent.last_seen;
  row.append(name, labels, healthCell(agent), configCell(agent), packagesCell(agent), certificateCell(agent), seen);
  return row;
}

function showAgents(agents) {
  const focused = document.activeElement && document.activeElement.closest("tr");
  const rows = agents.map(agentRow);
  at("agents").replaceChildren(...rows);
  at("none").hidden = agents.length > 0;
  const connected = agents.filter((agent) => agent.connected).length;
  const unhealthy = agents.filter((agent) => agent.health && !agent.health.healthy).length;
  at("summary").textContent = agents.length + " known · " + connected + " connected · " + unhealthy + " unhealthy";
  // The row that had the keyboard keeps it.
  const again = focused && rows.find((row) => row.dataset.uid === focused.dataset.uid);
  if (again) again.querySelector("button").focus();
}

function showFiles(place, files) {
  const names = files ? Object.keys(files) : [];
  // Scrolling and selecting survive as long as nothing changed.
  const print = JSON.stringify(files);
  if (place.dataset.print === print) return;
  place.dataset.print = print;
  place.replaceChildren();
  if (names.length === 0) place.append(make("p", "none", "quiet"));
  for (const name of names) place.append(make("small", name || "(main file)"), make("pre", files[name]));
}

function showDetail(agent) {
  at("detail").hidden = false;
  at("detail-title").textContent = nameOf(agent);
  const status = agent.remote_config_status;
  const facts = [
    ["uid", agent.instance_uid],
    ["last seen", agent.last_seen],
    ["sequence", String(agent.sequence_num)],
    ["capabilities", agent.capabilities.join(", ")],
    ["identity", JSON.stringify(agent.attributes.identifying)],
    ["config", status ? (status.status + " " + status.hash).trim() : "not reported"],
  ];
  if (status && status.error_message) facts.push(["config error", status.error_message]);
  if (agent.health) {
    for (const [name, part] of Object.entries(agent.health.components)) {
      facts.push([name, (part.healthy ? "healthy " : "unhealthy ") + part.status + " " + part.last_error]);
    }
  }
  for (const [name, pack] of Object.entries(agent.packages)) {
    const offered = pack.offered_version ? "(offered " + pack.offered_version + ")" : "";
    facts.push([name || "package", [pack.version, pack.status, offered, pack.error_message].filter(Boolean).join(" ")]);
  }
  for (const hash of agent.failed_hashes) facts.push(["failed before", hash]);
  at("facts").replaceChildren(...facts.flatMap(([key, value]) => [make("dt", key), make("dd", value)]));
  showFiles(at("effective"), agent.effective_config);
  showFiles(at("assigned"), agent.offered_config && agent.offered_config.files);
}

async function refresh() {
  try {
    showAgents((await ask("/api/v1/agents")).agents);
    const [offers, kept] = await Promise.all([ask("/api/v1/offers/packages"), ask("/api/v1/packages")]);
    showPackages(offers.offers, kept.packages);
    const [csrs, rotations] = await Promise.all([ask("/api/v1/csrs"), ask("/api/v1/rotations")]);
    showCertificates(csrs.csrs, rotations.rotations);
    const wanted = chosen;
    const detail = wanted && (await ask("/api/v1/agents/" + encodeURIComponent(wanted)));
    if (detail && chosen === wanted) showDetail(detail);
  } catch (error) {
    at("summary").textContent = "The server does not answer: " + error.message;
  }
}

async function keepFresh() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((done) => setTimeout(done, REFRESH));
  }
}

at("agents").addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (!row) return;
  chosen = row.dataset.uid;
  if (!at("target").value) at("target").value = "instance_uid=" + chosen;
  refresh();
});

at("csrs").addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { uid, decide } = button.dataset;
  const result = at("decided");
  try {
    const headers = { "Content-Type": "application/json" };
    await ask("/api/v1/csrs/" + encodeURIComponent(uid) + "/" + decide, { method: "POST", headers, body: "{}" });
    result.className = "good";
    result.textContent = (decide === "approve" ? "Approved " : "Rejected ") + uid + ".";
    refresh();
  } catch (error) {
    result.className = "bad";
    result.textContent = error.message;
  }
});

at("close").addEventListener("click", () => {
  chosen = null;
  at("detail").hidden = true;
  refresh();
});

at("push").addEventListener("submit", async (event) => {
  event.preventDefault();
  const result = at("result");
  // The API takes "" for every agent; an empty field is more often a slip.
  const target = at("target").value.trim();
  if (!target) {
    result.className = "bad";
    result.textContent = "Name a target; * is every agent.";
    return;
  }
  try {
    const body = JSON.stringify({ target, files: { [at("name").value.trim()]: at("body").value } });
    const headers = { "Content-Type": "application/json" };
    const answer = await ask("/api/v1/config", { method: "POST", headers, body });
    result.className = "good";
    result.textContent = "Pushed " + answer.hash.slice(0, 12) + " to " + answer.matched.length + " agent(s)."
      + (answer.failed_before.length ? " " + answer.failed_before.length + " failed it before and will not get it again." : "");
    refresh();
  } catch (error) {
    result.className = "bad";
    result.textContent = error.message;
  }
});

keepFresh();
