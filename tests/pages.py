"""Reading pages back: as elements, and in a real browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Every element of a page as (tag, attributes, text inside), in the order of their start; and its tables by their id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)
        if tag == "table":
            self.rows = self.tables.setdefault(element["id"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, text):
        for element in self.open:
            element["text"] += text

    def all(self, *tags):
        return [element for element in self.elements if element["tag"] in tags]

    def table(self, name):
        """Rows as {heading: cell}, cells as elements."""
        headings, *rows = self.tables[name]
        names = [heading["text"].strip() for heading in headings]
        return [dict(zip(names, row, strict=True)) for row in rows]


def texts(rows, *names):
    return [tuple(row[name]["text"].strip() for name in names) for row in rows]


def in_browser(tmp_path, pages, script, width=390):
    """What ``script``, the body of a function of (document, window) of each page, returns there; pages in frames ``width`` wide."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    frames = "".join(
        f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(text)}"></iframe>' for text in pages
    )
    harness = tmp_path / "harness.html"
    harness.write_text(
        f"<!doctype html><meta charset=utf-8>{frames}<pre id=said></pre><script>"
        "onload = () => { const look = (document, window) => {" + script + "};"
        "const tried = f => { try { return look(f.contentDocument, f.contentWindow); } catch (error) { return `${error}`; } };"
        "const said = [...document.querySelectorAll('iframe')].map(tried);"
        "document.getElementById('said').textContent = JSON.stringify(said); };</script>"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run",
         "--window-size=1280,900", "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", harness.as_uri()],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    said = json.loads(html.unescape(found[1]))
    assert not [each for each in said if isinstance(each, str)], said
    return said
