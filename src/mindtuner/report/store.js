// What the page holds: words and scores in the store, pictures in blocks that are read when one of them is first shown.
"use strict";
const store = JSON.parse(document.getElementById("store").textContent);

const pictures = (() => {
  const known = []; // base64 by id
  const blocks = [...document.querySelectorAll("script.block")];
  // The first run's main method stands in what browsers without scripts show, which to this one is text.
  const still = document.querySelector("noscript");
  for (const [, data, id] of still.textContent.matchAll(/base64,([^"]+)" data-id="(\d+)"/g)) known[id] = data;
  still.remove();

  function uri(id) {
    if (known[id] === undefined) {
      const block = blocks.findLast((one) => Number(one.dataset.first) <= id);
      const first = Number(block.dataset.first);
      JSON.parse(block.textContent).forEach((data, k) => { known[first + k] = data; });
      block.remove();
      blocks.splice(blocks.indexOf(block), 1);
    }
    return "data:image/webp;base64," + known[id];
  }
  return { uri };
})();

// File name of a shown image, or its number where the stimuli have no names.
function nameOf(run, i) {
  return run.names[run.truth[i]];
}

// Rank of the seen image among the five closest, 0 where it is not among them or the method looks nothing up.
function rankOf(run, method, i) {
  return method.top5 ? method.top5[i].indexOf(run.truth[i]) + 1 : 0;
}

function scoreText(method, key, i) {
  const value = method.scores[key]?.[i];
  if (value === undefined || value === null) return "";
  const score = store.scores[key];
  return `${score.label} ${score.share ? `${(100 * value).toFixed(1)}\u00a0%` : value.toFixed(3).replace("-", "\u2212")}`;
}

function altOf(run, stage, i) {
  const caption = run.captions[i] || "no caption";
  return stage === "seen" ? `Seen: ${caption}` : `${store.stages[stage]}, for the image: ${caption}`;
}
