"""Pages as a parser reads them, and as a real browser shows them."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WRAPPER = """<!DOCTYPE html><body><pre id="seen"></pre>
<iframe srcdoc="{page}" style="width: 390px; border: 0"></iframe>
<script>
document.querySelector("iframe").onload = ({{target}}) => {{
  const page = target.contentDocument, root = page.documentElement;
  document.getElementById("seen").textContent = JSON.stringify({{
    width: root.clientWidth,
    overflow: root.scrollWidth - root.clientWidth,
    broken: [...page.images].filter(image => !image.naturalWidth).length,
    requests: target.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    cut: [...page.querySelectorAll("#recall .scroll")]
      .filter(box => box.scrollWidth > box.clientWidth).length,
    touching: [...page.querySelectorAll(".grid + p")]
      .map(p => [p, p.previousElementSibling].map(part => part.getBoundingClientRect()))
      .filter(([text, grid]) => text.top - grid.bottom < 8).length,
    headings: [...page.querySelectorAll("h2")].filter(h => h.getBoundingClientRect().height).length,
  }});
}};
</script></body>"""


class Reader(HTMLParser):
    """Collects a page's text, attributes and tags."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_data(self, data):
        self.text.append(data)

    def values(self, *names):
        return [value for _, key, value in self.attributes if key in names]


def seen(source, folder):
    """What a browser makes of a page on a phone, and what it complains of."""
    wrapper = folder / "wrapper.html"
    wrapper.write_text(WRAPPER.format(page=html.escape(source)), encoding="utf-8")
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--hide-scrollbars", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
        *("--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    page = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    return {**page, "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}
