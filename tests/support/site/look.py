"""The site as a reader sees it: each page in a real Chromium, from files, in two widths and in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from support.browser.chromium import PHONE_WIDTH, BrowserTab, Scheme

WIDE = 1280
LOCAL = ("file:", "data:", "blob:", "about:")
BACKGROUNDS = {"light": "default", "dark": "slate"}  # the theme's names


class Look(NamedTuple):
    """A window of *width* CSS pixels, and the colours of the reader's system."""

    width: int
    scheme: Scheme

    @property
    def name(self) -> str:
        return f"{self.width}-{self.scheme}"


LOOKS = (Look(PHONE_WIDTH, "light"), Look(PHONE_WIDTH, "dark"), Look(WIDE, "light"), Look(WIDE, "dark"))
# What is wider than the window has to be in an element that scrolls: the page itself never does sideways. A phone makes
# its window (innerWidth) as wide as such a page.
OUTSIDE_OF_WINDOW = """(width) => {
    const scrolls = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    const isReached = (element) => {
        for (let outer = element.parentElement; outer; outer = outer.parentElement) if (scrolls(outer)) return true;
        return false;
    };
    const wide = [...document.querySelectorAll("article *")]
        .filter((element) => element.getBoundingClientRect().width > 0)
        .filter((element) => element.getBoundingClientRect().right > width + 1 && !isReached(element));
    const names = wide.map((element) => `${element.tagName} ${element.textContent.trim().slice(0, 40)}`);
    if (document.documentElement.scrollWidth > width) names.push("the page");
    return names.slice(0, 3);
}"""
SCHEME = "document.body.dataset.mdColorScheme"
BROKEN_IMAGES = "[...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src)"


async def find_faults(tab: BrowserTab, page: Path, look: Look) -> list[str]:
    await tab.show_as(*look)
    tab.faults.clear()
    tab.requests.clear()
    await tab.visit(page.as_uri())
    outside = await tab.evaluate(f"({OUTSIDE_OF_WINDOW})({look.width})")
    faults = [f"outside of the window: {name}" for name in outside]
    faults += [f"not shown: {source}" for source in await tab.evaluate(BROKEN_IMAGES)]
    faults += [f"asks another host: {url}" for url in tab.requests if not url.startswith(LOCAL)]
    if (shown := await tab.evaluate(SCHEME)) not in {BACKGROUNDS[look.scheme], None}:
        faults.append(f"expected the colours {BACKGROUNDS[look.scheme]}, got {shown}")
    return faults + tab.faults
