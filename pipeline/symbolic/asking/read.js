"use strict";
// A layer colours the tokens, a token chooses the panel, an expert marks the tokens that it is among the first of.
const tokens = [...document.querySelectorAll(".token")];
const panels = [...document.querySelectorAll(".panel")];
const layers = [...document.querySelectorAll("#layers button")];
const experts = [...document.querySelectorAll("[data-expert]")];

function press(buttons, pressed) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(pressed(button)));
}

function colour(layer) {
  press(layers, (button) => button.dataset.layer === String(layer));
  for (const token of tokens) {
    const strength = Number(token.dataset.strength.trim().split(" ")[layer]);
    token.style.backgroundColor = `rgba(13, 148, 136, ${(0.75 * strength).toFixed(3)})`;
  }
}

function choose(place) {
  for (const one of [...tokens, ...panels]) one.classList.toggle("chosen", one.dataset.place === place);
}

function mark(expert) {
  press(experts, (button) => button.dataset.expert === expert);
  for (const token of tokens) token.classList.toggle("fires", token.dataset.experts.split(" ").includes(expert));
}

document.body.classList.add("scripted");
for (const token of tokens) {
  for (const event of ["mouseover", "focus", "click"]) token.addEventListener(event, () => choose(token.dataset.place));
}
for (const button of layers) button.addEventListener("click", () => colour(Number(button.dataset.layer)));
for (const button of experts) button.addEventListener("click", () => mark(button.dataset.expert));
colour(0);
choose("0");
