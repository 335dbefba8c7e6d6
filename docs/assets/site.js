// The theme puts wide tables into boxes that scroll: they can be reached by keyboard as well.
const reachable = () => document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach((box) => (box.tabIndex = 0));
document.addEventListener("DOMContentLoaded", () => { reachable(); new MutationObserver(reachable).observe(document.querySelector("article"), { childList: true, subtree: true }); });
