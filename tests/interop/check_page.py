"""Pages and drawings of reports in a real browser: nothing is asked for from elsewhere, nothing goes wrong, nothing is cut off.

    check_page.py CHROMIUM SHOTS FILE...

FILE is a .html page or a .svg drawing. Pages are opened in light and dark, narrow and wide, without JavaScript as they need
none; a picture of each, and the page as printed, goes into the folder SHOTS. Talks to Chromium over a pipe: needs nothing but Python.
"""

import base64
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.parse
import xml.etree.ElementTree

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
--disable-sync --disable-extensions --hide-scrollbars --remote-debugging-pipe""".split()
WIDTHS = [400, 1400]

# What sticks out of the page or of its drawing, and labels that cover one another.
FAULTS = """(() => {
  const faults = [];
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide > 0) faults.push(`the page is ${wide} px too wide`);
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const name = svg.querySelector("title").textContent;
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const texts = [...svg.querySelectorAll("text")].map(text => {
      const box = text.getBBox(), matrix = svg.getScreenCTM().inverse().multiply(text.getScreenCTM());
      const x = box.x + matrix.e, y = box.y + matrix.f;
      return { label: text.textContent, left: x, right: x + box.width, top: y + 2, bottom: y + box.height - 2 };
    });
    texts.forEach((a, i) => {
      if (a.left < -3 || a.right > width + 3 || a.top < -3 || a.bottom > height + 3) faults.push(`${name}: "${a.label}" sticks out`);
      texts.slice(i + 1).forEach(b => {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 1) faults.push(`${name}: "${a.label}" covers "${b.label}"`);
      });
    });
  }
  return faults;
})()"""


class Browser:
    """A headless Chromium, and what it complained of since it was last asked."""

    def __init__(self, program, profile):
        (to_read, self.to), (self.back, from_write) = os.pipe(), os.pipe()

        def at_3_and_4():
            ours, theirs = os.dup(to_read), os.dup(from_write)
            os.dup2(ours, 3)
            os.dup2(theirs, 4)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=at_3_and_4, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        self.count, self.pending, self.session, self.complaints, self.loaded = 0, b"", None, [], 0
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']}")
                return answer["result"]
            self.hear(answer)

    def receive(self):
        while b"\0" not in self.pending:
            got = os.read(self.back, 1 << 20)
            if not got:
                sys.exit("the browser went away")
            self.pending += got
        message, self.pending = self.pending.split(b"\0", 1)
        return json.loads(message)

    def hear(self, event):
        params = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self.loaded += 1
            case "Runtime.exceptionThrown":
                self.complaints.append(f"exception: {params['exceptionDetails']['text']}")
            case "Runtime.consoleAPICalled":
                self.complaints.append(f"console: {params['args']}")
            case "Log.entryAdded":
                self.complaints.append(f"{params['entry']['level']}: {params['entry']['text']}")
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    self.complaints.append(f"asks for {url}")

    def open(self, path, width, scheme):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", media="screen", features=[{"name": "prefers-color-scheme", "value": scheme}])
        before = self.loaded
        self.ask("Page.navigate", url="file://" + urllib.parse.quote(str(path)))
        while self.loaded == before:
            self.hear(self.receive())

    def evaluate(self, expression):
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def shot(self, path):
        picture = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True,
                           clip={**self.size(), "x": 0, "y": 0, "scale": 1})
        path.write_bytes(base64.b64decode(picture["data"]))

    def size(self):
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"width": size["width"], "height": size["height"]}

    def printed(self, path):
        self.ask("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        sheet = self.ask("Page.printToPDF", printBackground=False, preferCSSPageSize=False, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(sheet["data"]))

    def told(self):
        told, self.complaints = self.complaints, []
        return told


def main():
    program, shots, files = sys.argv[1], pathlib.Path(sys.argv[2]), [pathlib.Path(file).resolve() for file in sys.argv[3:]]
    shots.mkdir(parents=True, exist_ok=True)
    faults, common = [], os.path.commonpath([file.parent for file in files])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        for file in files:
            name = "-".join(file.relative_to(common).with_suffix("").parts)
            if file.suffix == ".svg":
                try:
                    xml.etree.ElementTree.parse(file)
                except xml.etree.ElementTree.ParseError as error:
                    faults.append(f"{file}: {error}")
            widths = WIDTHS if file.suffix == ".html" else [800]
            for scheme in ["light", "dark"]:
                for width in widths:
                    browser.open(file, width, scheme)
                    found = browser.evaluate(FAULTS) if file.suffix == ".html" else []
                    if found is None:
                        faults.append(f"{file}: the page could not be examined")
                    faults += [f"{file}, {width} px, {scheme}: {fault}" for fault in (found or []) + browser.told()]
                    browser.shot(shots / f"{name}-{width}-{scheme}.png")
            if file.suffix == ".html":
                browser.printed(shots / f"{name}.pdf")
        browser.ask("Browser.close")
        browser.process.wait(timeout=30)
    for fault in dict.fromkeys(faults):
        print(f"  {fault}")
    if faults:
        sys.exit(1)
    print(f"  {len(files)} pages and drawings are as they should be")


main()
