// Asks the operator for the fleet every two seconds while somebody looks, and changes only the text that changed: an
// open detail stays open, and a screen reader is not told the whole table again.
"use strict";

const INTERVAL_MS = 2000;
const MISSING = "–";
let updatedAt = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function write(node, text, className) {
  if (node.textContent !== text) node.textContent = text;
  if (className !== undefined && node.className !== className) node.className = className;
}

function number(value, digits = 0) {
  return value === undefined ? MISSING
    : value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Makes the children of `parent` be one per item, in order, keeping those that are there by key. */
function sync(parent, items, key, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const name = key(item);
    let child = known.get(name);
    known.delete(name);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = name;
    }
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
    update(child, item);
  });
  for (const gone of known.values()) gone.remove();
}

function totals(values) {
  const shown = [
    ["Models serving", `${values.serving} of ${values.models}`],
    ["Stalled", number(values.stalled)],
    ["Requests waiting", number(values.waiting)],
    ["Requests running", number(values.running)],
    ["Cost per hour", values.usdPerHour === undefined ? MISSING : `$${number(values.usdPerHour, 2)}`],
  ];
  sync(document.getElementById("totals"), shown, ([name]) => name, ([name]) => {
    const card = element("div");
    card.append(element("dt", "", name), element("dd"));
    return card;
  }, (card, [, value]) => write(card.lastElementChild, value));
}

function titled(item) {
  const cell = element("th");
  cell.scope = "row";
  cell.append(element("span", "", item.name), element("span", "soft"));
  return cell;
}

function stateCell() {
  const cell = element("td");
  const details = element("details");
  details.append(element("summary", "state"), element("ul"));
  cell.append(details);
  return cell;
}

function showState(cell, item) {
  const [summary, list] = cell.firstElementChild.children;
  write(summary, item.state, `state ${item.state}`);
  sync(list, item.conditions, (c) => c.type, () => element("li"), (line, c) =>
    write(line, `${c.type} is ${c.status}: ${c.message}`));
}

function savings(list) {
  return list.map(({ comparator, usd }) =>
    `${usd < 0 ? "−" : "+"}$${number(Math.abs(usd), 4)} ${comparator}`);
}

function modelRow(item) {
  const row = element("tr");
  const place = element("td");
  place.append(element("span"), element("span", "soft"));
  row.append(titled(item), stateCell(), place);
  for (let column = 0; column < 6; column += 1) row.append(element("td", "number"));
  row.lastElementChild.append(element("div"));
  return row;
}

function showModel(row, item) {
  const cells = row.children;
  write(cells[0].lastElementChild, `${item.namespace} · ${item.source}`);
  showState(cells[1], item);
  write(cells[2].firstElementChild, [item.engine, item.quantization].filter(Boolean).join(", ") || MISSING);
  write(cells[2].lastElementChild, item.accelerator ?? "");
  write(cells[3], item.desiredReplicas === undefined ? MISSING
    : `${number(item.readyReplicas)} of ${number(item.desiredReplicas)}`);
  write(cells[4], number(item.waiting));
  write(cells[5], number(item.running));
  write(cells[6], number(item.usdPerHour, 2));
  write(cells[7], number(item.usdPerMillionTokens, 3));
  const lines = savings(item.savings);
  sync(cells[8].firstElementChild, lines.length ? item.savings : [{ comparator: "" }], (s) => s.comparator,
    () => element("div"), (line, s) => write(line, s.comparator ? savings([s])[0] : MISSING,
      s.comparator ? (s.usd < 0 ? "loss" : "gain") : ""));
}

function policyRow(item) {
  const row = element("tr");
  row.append(titled(item), stateCell(), element("td"), element("td"), element("td"));
  return row;
}

function showPolicy(row, item) {
  const cells = row.children;
  write(cells[0].lastElementChild, item.namespace);
  showState(cells[1], item);
  [item.hostModels, item.rules, item.targets].forEach((names, index) =>
    write(cells[index + 2], names.join(", ") || MISSING));
}

function decisionLine(item) {
  const line = element("li");
  const time = element("time", "", new Date(item.at).toLocaleTimeString());
  time.dateTime = item.at;
  line.append(time, element("strong", item.type, item.reason), ` ${item.object}: ${item.note}`);
  return line;
}

function table(id, items, make, update) {
  const body = document.querySelector(`#${id} tbody`) ?? document.getElementById(id);
  sync(body, items, (item) => item.key ?? `${item.namespace}/${item.name}`, make, update);
  const section = body.closest("section");
  section.querySelector(".empty").hidden = items.length > 0;
  (section.querySelector(".wide") ?? body).hidden = items.length === 0;
}

function show(fleet) {
  totals(fleet.totals);
  table("models", fleet.models, modelRow, showModel);
  table("policies", fleet.policies, policyRow, showPolicy);
  const decisions = fleet.decisions.map((item) => ({ ...item, key: `${item.at} ${item.object} ${item.reason}` }));
  table("decisions", decisions, decisionLine, () => {});
}

function freshness(lost) {
  const node = document.getElementById("freshness");
  if (!lost) write(node, "Live", "");
  else write(node, updatedAt === null ? "The operator does not answer."
    : `The operator does not answer; this is the fleet of ${updatedAt.toLocaleTimeString()}.`, "lost");
}

async function refresh() {
  try {
    const answer = await fetch("fleet.json", { signal: AbortSignal.timeout(5 * INTERVAL_MS) });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    show(await answer.json());
    updatedAt = new Date();
    freshness(false);
  } catch {
    freshness(true);
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((done) => setTimeout(done, INTERVAL_MS));
  }
}

run();
