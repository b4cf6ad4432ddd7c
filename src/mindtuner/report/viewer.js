// One image large: the seen beside what every method of the run makes of it, and what the other runs make of the same image.
const viewer = (() => {
  const dialog = document.getElementById("viewer");
  const template = document.getElementById("row");
  let now = null; // {run, name, i, score, step, closed}

  function show(state) {
    now = state;
    const { run, i } = now;
    document.getElementById("viewer-title").textContent = nameOf(run, i);
    fillFrame(dialog.querySelector(".truth .frame"), run.seen[i], altOf(run, "seen", i));
    dialog.querySelector(".truth figcaption").textContent = run.captions[i] || "no caption";
    const names = Object.keys(run.methods).sort((a, b) => (b === now.name) - (a === now.name));
    const rows = names.map((name) => row(run.methods[name].label, run, run.methods[name], i));
    for (const other of store.runs) {
      const at = other === run ? -1 : other.seen.indexOf(run.seen[i]);
      const method = other.methods[now.name];
      if (at >= 0 && method) rows.push(row(`${method.label}, ${other.label}`, other, method, at));
    }
    dialog.querySelector(".rows").replaceChildren(...rows);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  function row(title, run, method, i) {
    const section = template.content.firstElementChild.cloneNode(true);
    section.querySelector("h3").textContent = title;
    section.querySelector(".score").textContent = scoreText(method, now.score, i);
    section.querySelector(".pictures").append(...Object.keys(store.stages).filter((stage) => method.pictures[stage]).map((stage) => {
      const figure = document.createElement("figure");
      const frame = document.createElement("div");
      const caption = document.createElement("figcaption");
      frame.className = "frame";
      fillFrame(frame, method.pictures[stage][i], `${altOf(run, stage, i)}, ${title}`);
      caption.textContent = store.stages[stage];
      figure.append(frame, caption);
      return figure;
    }));
    const rank = rankOf(run, method, i);
    const found = !method.top5 ? "" : rank ? `Found ${store.ordinals[rank - 1]}. ` : "Not in the first five. ";
    section.querySelector(".read").textContent = found + [["Read", method.read], ["Written", method.written]]
      .filter(([, captions]) => captions).map(([said, captions]) => `${said}: ${captions[i]}`).join(". ");
    return section;
  }

  dialog.addEventListener("click", (event) => {
    const name = event.target.name;
    if (name === "previous") now.step(-1);
    if (name === "next") now.step(1);
    if (name === "close" || event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => now.closed(now.i));
  return { show, isOpen: () => dialog.open };
})();
