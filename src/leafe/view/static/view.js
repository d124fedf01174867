// Three comforts over pages that are whole without it: links within a tree change the page in place, keys walk it, and what is new appears by itself.

const $ = (id) => document.getElementById(id);

// ---- in place: fetch the page, exchange what changed, keep where the reader was
let going = 0;

async function page(address) {
  const answer = await fetch(address, { headers: { accept: "text/html" } });
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

function scrolled() {
  const tree = $("tree");
  return tree ? [tree.scrollLeft, tree.scrollTop] : null;
}

function showHere(before) {
  const tree = $("tree");
  if (!tree) return;
  if (before) [tree.scrollLeft, tree.scrollTop] = before;
  const here = $("here");
  if (!here) return;
  const box = tree.getBoundingClientRect();
  const mark = here.getBoundingClientRect();
  if (mark.left < box.left + 60 || mark.right > box.right - 120) tree.scrollLeft += mark.left - box.left - box.width / 2;
  if (mark.top < box.top + 30 || mark.bottom > box.bottom - 30) tree.scrollTop += mark.top - box.top - box.height / 2;
}

async function go(address, push = true) {
  const mine = ++going;
  const before = new URL(address, location).pathname === location.pathname ? scrolled() : null;
  const held = document.activeElement && document.activeElement.id;
  const open = [...document.querySelectorAll("details[open]")].map((each) => each.className);
  let found;
  try {
    found = await page(address);
  } catch {
    location.assign(address);
    return;
  }
  if (mine !== going) return;
  if (push) history.pushState(null, "", address);
  document.title = found.title;
  document.body.dataset.revision = found.body.dataset.revision;
  document.querySelector(".top .where").replaceWith(found.querySelector(".top .where"));
  $("page").replaceWith(found.getElementById("page"));
  for (const each of document.querySelectorAll("details")) if (open.includes(each.className)) each.open = true;
  showHere(before);
  if (held && $(held)) $(held).focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = event.target.closest("a");
  const address = link && (link.href.baseVal ?? link.href);
  if (!address) return;
  const to = new URL(address, location);
  if (to.origin !== location.origin || to.pathname !== location.pathname || !to.pathname.startsWith("/tree/") || to.hash) return;
  event.preventDefault();
  go(to.href);
});
addEventListener("popstate", () => go(location.href, false));

// ---- keys: each is a link that stands on the page
const KEYS = { j: "next-branch", k: "prev-branch", l: "next-turn", h: "prev-turn", r: "to-reflection", n: "next-task", p: "prev-task" };
const ARROWS = { ArrowDown: "next-branch", ArrowUp: "prev-branch", ArrowRight: "next-turn", ArrowLeft: "prev-turn" };
let keys = localStorage.getItem("keys") !== "off";
const button = $("keys");

function tellKeys() {
  button.hidden = false;
  button.textContent = keys ? "turn keys off" : "turn keys on";
}
button.addEventListener("click", () => {
  keys = !keys;
  localStorage.setItem("keys", keys ? "on" : "off");
  tellKeys();
});
tellKeys();

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const inTree = event.target.closest("#tree"); // arrows walk where the drawing has the focus, and scroll elsewhere
  const id = (inTree && ARROWS[event.key]) || (keys && KEYS[event.key]);
  if (keys && event.key === "/") {
    event.preventDefault();
    $("search").focus();
  } else if (id && $(id)) {
    event.preventDefault();
    $(id).click();
  }
});

// ---- what is new: parts of the page that say so are exchanged when the run has gone on
async function pulse() {
  let wait = 2000;
  try {
    if (!document.hidden) {
      const now = await (await fetch("/pulse")).json();
      const words = now.problem || String(now.revision);
      if (words !== document.body.dataset.seen && String(now.revision) !== document.body.dataset.revision) await renew();
      document.body.dataset.seen = words;
      if (now.read >= now.of && !document.querySelector(".running")) wait = 5000;
    }
  } catch {
    wait = 10000; // the viewer was stopped; it may come back
  }
  setTimeout(pulse, wait);
}

async function renew() {
  const chosen = getSelection();
  if (chosen && !chosen.isCollapsed) return; // somebody reads, or copies
  const mine = going;
  const found = await page(location.href);
  if (mine !== going) return;
  const before = scrolled();
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = found.getElementById(old.id);
    if (!fresh) continue;
    for (const each of old.querySelectorAll("details[open]")) {
      const same = [...fresh.querySelectorAll("details")].find((other) => other.className === each.className);
      if (same) same.open = true;
    }
    if (fresh.innerHTML !== old.innerHTML && !old.contains(document.activeElement)) old.replaceWith(fresh);
  }
  const fresh = found.getElementById("page"); // a page that was not there yet, or a task without its first episode
  if (fresh.dataset.kind !== $("page").dataset.kind || (!$("panel") && found.getElementById("panel"))) $("page").replaceWith(fresh);
  document.body.dataset.revision = found.body.dataset.revision;
  if (before && $("tree")) [$("tree").scrollLeft, $("tree").scrollTop] = before;
}

showHere(null);
setTimeout(pulse, 1500);
