// Switches the gallery between methods, orders and filters it. Everything shown is already in the page:
// the main method's pictures stand in the HTML, all others in the JSON store, each once.
(() => {
  "use strict";
  const store = JSON.parse(document.getElementById("store").textContent);
  const form = document.querySelector("form.controls");
  const choice = form.elements;
  const list = document.getElementById("cards");
  const cards = [...list.querySelectorAll(".card")];
  for (const img of document.querySelectorAll("img[data-id]")) {
    store.uris[img.dataset.id] ??= img.src;
  }

  function showPicture(figure, number, alt, note) {
    const frame = figure.querySelector(".frame");
    figure.querySelector("small").textContent = number === undefined ? "" : note;
    if (number === undefined) {
      const absent = document.createElement("p");
      absent.className = "absent";
      absent.textContent = "not made";
      frame.replaceChildren(absent);
      return;
    }
    let img = frame.querySelector("img");
    if (!img) {
      img = document.createElement("img");
      frame.replaceChildren(img);
    }
    img.alt = alt;
    img.dataset.id = number;
    img.src = store.uris[number];
  }

  function showStrip(card, strip) {
    card.querySelector(".retrieval").hidden = !strip;
    if (!strip) return;
    const verdict = card.querySelector(".verdict");
    verdict.textContent = strip.verdict;
    verdict.dataset.rank = strip.rank;
    card.querySelectorAll(".strip li").forEach((item, place) => {
      item.classList.toggle("hit", strip.rank === place + 1);
      const thumb = item.querySelector(".thumb");
      thumb.style.setProperty("--x", strip.at[place] % store.columns);
      thumb.style.setProperty("--y", Math.floor(strip.at[place] / store.columns));
      thumb.title = strip.labels[place];
      thumb.setAttribute("aria-label", strip.labels[place]);
    });
  }

  function showMethod(method) {
    document.getElementById("method-name").textContent = method.label + ".";
    document.getElementById("method-about").textContent = method.about;
    for (const card of cards) {
      const i = Number(card.dataset.index);
      const seen = card.querySelector(".seen").textContent;
      for (const figure of card.querySelectorAll("figure[data-stage]")) {
        const stage = figure.dataset.stage;
        showPicture(figure, method.pictures[stage]?.[i],
          `${store.stages[stage]}, for the image: ${seen}`, method.notes[stage]);
      }
      card.querySelector(".read").textContent = method.read ? method.read[i] : "no words from this method";
      card.querySelector(".score").textContent = method.scores ? `score ${method.scores[i].toFixed(2)}` : "";
      showStrip(card, method.strips?.[i]);
    }
  }

  function arrange(method) {
    const index = (card) => Number(card.dataset.index);
    const order = method.scores && choice.order ? choice.order.value : "index";
    let key = index;
    if (order !== "index") {
      const sorted = [...method.scores].sort((a, b) => a - b);
      const half = sorted.length >> 1;
      const median = sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
      const keys = { best: (s) => -s, worst: (s) => s, median: (s) => Math.abs(s - median) };
      key = (card) => keys[order](method.scores[index(card)]);
    }
    if (choice.order) choice.order.disabled = !method.scores;
    choice.show.disabled = !method.strips;

    const fits = {
      all: () => true, first: (rank) => rank === 1, five: (rank) => rank > 0, missed: (rank) => rank === 0,
    }[method.strips ? choice.show.value : "all"];
    let shown = 0;
    for (const card of [...cards].sort((a, b) => key(a) - key(b) || index(a) - index(b))) {
      const visible = fits(method.strips?.[index(card)].rank);
      card.parentElement.hidden = !visible;
      shown += visible;
      list.append(card.parentElement);
    }
    document.getElementById("none").hidden = shown > 0;
    document.getElementById("status").textContent = `${shown} of ${cards.length} images shown.`;
  }

  // A reloaded page may keep an earlier choice in its form, so the form, not the HTML, says what to show.
  function update(event) {
    const method = store.methods[choice.method.value];
    if (event?.target.name !== "order" && event?.target.name !== "show") showMethod(method);
    list.classList.toggle("large", choice.large.checked);
    arrange(method);
  }
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
})();
