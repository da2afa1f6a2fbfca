// What is wrong with the page that is shown, one line each: words cut off, words that do not stand
// out, parts that no key reaches or that have no name.
(() => {
  const faults = [];
  const seen = (element) => element.getClientRects().length && getComputedStyle(element).visibility !== "hidden";
  const named = (element) => element.className?.baseVal ?? element.className;
  const say = (what, element) => faults.push(`${what}: ${element.tagName} ${named(element)} "${element.textContent.trim().slice(0, 40)}"`);

  // -- words cut off
  if (document.documentElement.scrollWidth > innerWidth) faults.push(`the page is ${document.documentElement.scrollWidth} wide in ${innerWidth}`);
  for (const element of document.querySelectorAll("body *")) {
    const style = getComputedStyle(element);
    const cuts = ["hidden", "clip"].includes(style.overflowX) || ["hidden", "clip"].includes(style.overflowY);
    if (cuts && !element.closest("svg") && seen(element) && element.textContent.trim() &&
        (element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1)) say("cut off", element);
  }
  for (const word of document.querySelectorAll("svg.sheet > text")) {
    if (!seen(word)) continue;
    const [box, sheet] = [word.getBoundingClientRect(), word.closest("svg.sheet").getBoundingClientRect()];
    if (box.left < sheet.left - 1 || box.right > sheet.right + 1 || box.top < sheet.top - 1 || box.bottom > sheet.bottom + 1) say("outside its chart", word);
  }

  // -- words that do not stand out, by WCAG 2
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const linear = (value) => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const element = words.currentNode.parentElement;
    if (!words.currentNode.textContent.trim() || !seen(element) || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    if (element.classList.contains("in")) continue; // On a bar, which hues are chosen for.
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = contrast(parts(element.closest("svg") ? style.fill : style.color), behind(element));
    if (ratio < (large ? 3 : 4.5)) say(`contrast ${ratio.toFixed(2)}`, element);
  }

  // -- parts that no key reaches, or that have no name
  for (const element of document.querySelectorAll(".chart, .scroll, pre")) {
    if (seen(element) && element.tabIndex < 0) say("out of reach of keys", element);
  }
  for (const element of document.querySelectorAll(".chart, .scroll, svg.sheet, nav, button, a")) {
    if (!element.getAttribute("aria-label") && !element.textContent.trim()) say("without a name", element);
  }
  for (const figure of document.querySelectorAll("figure")) {
    if (!figure.querySelector("figcaption")?.textContent.trim()) say("without a caption", figure);
  }
  for (const head of document.querySelectorAll("th")) {
    if (!head.scope) say("a head of nothing", head);
    if (!head.textContent.trim()) say("an empty head", head.closest("table"));
  }
  let level = 1;
  for (const heading of document.querySelectorAll("h1, h2, h3")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) say("a heading too deep", heading);
    level = own;
  }
  if (document.documentElement.lang !== "en") faults.push("no language");
  if (document.querySelectorAll("h1").length !== 1) faults.push("not one title");
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push(`two of id ${id}`);
  return faults;
})()
