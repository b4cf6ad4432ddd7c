// Fills a card of the gallery with one image of a run, as one method reads it.
function fillCard(card, run, method, i, scoreKey) {
  const open = card.querySelector(".open");
  open.textContent = nameOf(run, i);
  open.id = `image-${i + 1}`;
  card.setAttribute("aria-labelledby", open.id);
  card.querySelector(".score").textContent = scoreText(method, scoreKey, i);
  for (const figure of card.querySelectorAll("figure")) {
    const stage = figure.dataset.stage;
    const ids = stage === "seen" ? run.seen : method.pictures[stage];
    fillFrame(figure.querySelector(".frame"), ids?.[i], altOf(run, stage, i));
    figure.querySelector("small").textContent = stage === "seen" ? "the test image" : method.notes[stage] ?? "";
  }
  card.querySelector(".seen").textContent = run.captions[i] || "no caption";
  card.querySelector(".read").textContent = method.read ? method.read[i] : "no words from this method";
  const written = card.querySelector(".written");
  if (written) written.textContent = method.written ? method.written[i] : "nothing by this method";
  fillStrip(card.querySelector(".retrieval"), run, method, i);
}

function fillFrame(frame, id, alt) {
  if (id === undefined) {
    const absent = document.createElement("p");
    absent.className = "absent";
    absent.textContent = "not made";
    frame.replaceChildren(absent);
    return;
  }
  let img = frame.querySelector("img");
  if (!img) {
    img = document.createElement("img");
    img.decoding = "async";
    frame.replaceChildren(img);
  }
  img.alt = alt;
  if (img.dataset.id !== String(id)) {
    img.dataset.id = id;
    img.src = pictures.uri(id);
  }
}

function fillStrip(retrieval, run, method, i) {
  retrieval.hidden = !method.top5;
  if (!method.top5) return;
  const rank = rankOf(run, method, i);
  const verdict = retrieval.querySelector(".verdict");
  verdict.dataset.rank = rank;
  verdict.textContent = rank === 0 ? "Not in the first five" : rank === 1 ? "Found first" : `Found ${store.ordinals[rank - 1]}`;
  const columns = store.columns[run.sheet];
  retrieval.querySelectorAll(".strip li").forEach((item, place) => {
    const at = method.top5[i][place];
    item.hidden = at === undefined;
    if (at === undefined) return;
    item.classList.toggle("hit", rank === place + 1);
    const thumb = item.querySelector(".thumb");
    thumb.style.setProperty("--x", at % columns);
    thumb.style.setProperty("--y", Math.floor(at / columns));
    thumb.title = `${store.ordinals[place]}${rank === place + 1 ? ", the image seen" : ""}: ${run.names[at]}, ${run.all[at] || "no caption"}`;
    thumb.setAttribute("aria-label", thumb.title);
  });
}
