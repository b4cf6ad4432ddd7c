// Asks for the session's state twice a second and shows it. All words come in as text, never as markup.
"use strict";
const at = (id) => document.getElementById(id);
const shown = 60; // earlier trials on the page; all are in decoded.csv
let last = "";

function make(tag, text, name) {
  const one = document.createElement(tag);
  if (text !== undefined) one.textContent = text;
  if (name) one.className = name;
  return one;
}

function image(source, alt) {
  const one = make("img");
  one.src = source;
  one.alt = alt;
  return one;
}

const percent = (share) => (share === null ? "" : `${Math.round(100 * share)}\u00a0%`);
const sentence = (trial) => trial.words.map(([phrase]) => phrase).join(", ") || trial.caption;
const total = (trial) => Object.values(trial.seconds).reduce((sum, one) => sum + one, 0);

function word([phrase, sure]) {
  const one = make("li", phrase);
  const bar = make("span", undefined, "bar");
  const part = make("i");
  part.style.width = `${100 * sure}%`;
  bar.append(part);
  one.append(make("span", ` ${percent(sure)}`, "sure"), bar);
  return one;
}

function candidate(found) {
  const one = make("li");
  one.append(image(`stimulus/${found.image}`, found.name), make("span", found.name, "name"), make("span", ` ${percent(found.confidence)}`, "sure"));
  return one;
}

function row(trial) {
  const one = make("li");
  const picture = trial.painted ? image(`picture/${trial.number}`, "Painted") : make("span");
  const near = trial.nearest[0];
  one.append(picture, image(`stimulus/${near.image}`, near.name), make("span", trial.trial, "name"), make("span", sentence(trial)), make("span", percent(near.confidence), "sure"));
  return one;
}

function show(state) {
  document.title = `MindTuner live: ${state.trials.length} trials`;
  at("title").textContent = state.title;
  at("broken").hidden = state.broken.length === 0;
  at("broken").replaceChildren(...state.broken.map((one) => make("li", one.why)));
  const now = state.trials.at(-1);
  if (!now) return;
  at("status").textContent = `${state.trials.length} trials, the last ${total(now).toFixed(2)} s after its file was seen`;
  at("now").hidden = false;
  at("trial").textContent = now.trial;
  at("words").replaceChildren(...now.words.map(word));
  at("caption").textContent = now.caption ? `Nearest caption: ${now.caption}` : "";
  at("picture").hidden = !now.painted;
  if (now.painted) at("picture").src = `picture/${now.number}`;
  at("painting").textContent = now.painted ? "Painted from this trial" : state.paints ? "Painting …" : "";
  at("nearest").replaceChildren(...now.nearest.map(candidate));
  const earlier = state.trials.slice(0, -1).reverse().slice(0, shown);
  at("earlier-title").hidden = earlier.length === 0;
  at("earlier").replaceChildren(...earlier.map(row));
}

async function look() {
  try {
    const text = await (await fetch("state.json")).text();
    if (text !== last) show(JSON.parse(text)); // what has not changed is not drawn again
    last = text;
  } catch {
    at("status").textContent = "The session has ended, or its program was stopped.";
    last = "";
  }
  setTimeout(look, 500);
}

look();
