// The gallery: which run, method and images are shown, in what order. Only cards near the window exist.
const form = document.querySelector("form.controls");
const choice = form.elements;
const list = document.getElementById("cards");
const blank = document.getElementById("card").content.firstElementChild;
let slots = []; // one list item for each image of the run
let order = []; // the images shown, in order
let run, method;

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) fillSlot(entry.target);
    else emptySlot(entry.target, entry.boundingClientRect.height);
  }
}, { rootMargin: "1200px 0px" });

function fillSlot(slot) {
  if (slot.firstElementChild) return;
  const card = blank.cloneNode(true);
  fillCard(card, run, method, Number(slot.dataset.index), choice.score?.value);
  slot.style.minHeight = "";
  slot.append(card);
}

// An empty slot keeps its height, so that the page does not move.
function emptySlot(slot, height) {
  if (!slot.firstElementChild || slot.contains(document.activeElement)) return;
  if (height) slot.style.minHeight = `${height}px`;
  slot.replaceChildren();
}

function makeSlots() {
  near.disconnect();
  slots = run.captions.map((_, i) => {
    const slot = document.createElement("li");
    slot.dataset.index = i;
    near.observe(slot);
    return slot;
  });
}

function refill() {
  for (const slot of slots) {
    slot.style.minHeight = "";
    if (slot.firstElementChild) fillCard(slot.firstElementChild, run, method, Number(slot.dataset.index), choice.score?.value);
  }
}

function fits(i) {
  const rank = rankOf(run, method, i);
  const shown = { all: true, first: rank === 1, five: rank > 0, missed: rank === 0 }[method.top5 ? choice.show.value : "all"];
  const words = choice.words.value.trim().toLowerCase();
  if (!shown || !words) return shown;
  if (/^\d+$/.test(words)) return new RegExp(`(^|\\D)0*${words}(\\D|$)`).test(nameOf(run, i));
  const text = `${nameOf(run, i)} ${run.captions[i]} ${method.read?.[i] ?? ""} ${method.written?.[i] ?? ""}`.toLowerCase();
  return words.split(/\s+/).every((word) => text.includes(word));
}

// Lower is better for the sort; images without the score come last.
function sortKey() {
  const key = choice.score?.value;
  const values = method.scores[key];
  if (choice.order.value === "index" || !values) return () => 0;
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  const half = known.length >> 1;
  const median = known.length % 2 ? known[half] : (known[half - 1] + known[half]) / 2;
  const sign = (choice.order.value === "best") === store.scores[key].lower ? 1 : -1;
  const rate = choice.order.value === "median" ? (value) => Math.abs(value - median) : (value) => sign * value;
  return (i) => (values[i] === null ? Infinity : rate(values[i]));
}

function arrange() {
  const key = sortKey();
  order = slots.map((_, i) => i).filter(fits).map((i) => [key(i), i])
    .sort(([a, i], [b, j]) => (a === b ? i - j : a - b)).map(([, i]) => i);
  list.replaceChildren(...order.map((i) => slots[i]));
  order.slice(0, 4).forEach((i) => fillSlot(slots[i]));
  if (order.length) list.style.setProperty("--card", `${slots[order[0]].firstElementChild.offsetHeight}px`);
  document.getElementById("none").hidden = order.length > 0;
  document.getElementById("status").textContent = `${order.length} of ${slots.length} images shown.`;
}

// A reloaded page may keep an earlier choice in its form, so the form, not the HTML, says what to show.
function update() {
  const chosen = store.runs[choice.run?.value ?? 0];
  const isNew = chosen !== run;
  run = chosen;
  for (const radio of form.querySelectorAll("[name=method]")) radio.disabled = !run.methods[radio.value];
  if (!run.methods[choice.method.value]) choice.method.value = run.main;
  method = run.methods[choice.method.value];
  document.getElementById("method-name").textContent = `${method.label}.`;
  document.getElementById("method-about").textContent = method.about;
  choice.show.disabled = !method.top5;
  list.className = `cards sheet-${run.sheet}`;
  if (isNew) makeSlots();
  else refill();
  arrange();
}

function focusCard(i) {
  fillSlot(slots[i]);
  slots[i].scrollIntoView({ block: "nearest", behavior: "instant" });
  slots[i].querySelector(".open").focus({ preventScroll: true });
}

// The image that has the focus, or the first that can be seen below the controls.
function current() {
  const focused = document.activeElement.closest?.("#cards > li");
  if (focused) return Number(focused.dataset.index);
  return null;
}

function neighbour(i, by) {
  const at = order.indexOf(i);
  return order[Math.min(Math.max(at + by, 0), order.length - 1)];
}

function openViewer(i) {
  viewer.show({ run, name: choice.method.value, i, score: choice.score?.value, closed: focusCard,
    step: (by) => openViewer(neighbour(i, by)) });
}

const STEPS = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
document.addEventListener("keydown", (event) => {
  const by = STEPS[event.key];
  if (!by || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea") || !order.length) return;
  if (viewer.isOpen()) {
    document.querySelector(`#viewer [name=${by > 0 ? "next" : "previous"}]`).click();
  } else {
    const i = current();
    if (i === null && event.key.startsWith("Arrow")) return; // elsewhere on the page arrows are the browser's
    focusCard(i === null ? firstInView() : neighbour(i, by));
  }
  event.preventDefault();
});

function firstInView() {
  return order.find((i) => slots[i].getBoundingClientRect().top >= 0) ?? order[order.length - 1];
}

list.addEventListener("click", (event) => {
  if (event.target.closest(".open, .pictures")) openViewer(Number(event.target.closest("li[data-index]").dataset.index));
});
form.addEventListener("change", update);
choice.words.addEventListener("input", arrange);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
document.querySelector(".keys").hidden = false;
update();
