"""A headless Chromium for tests, driven through a pipe by its DevTools protocol: mouse, keys, scripts and screenshots."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Browser:
    """One page of a Chromium of its own, which is skipped where there is none: `with Browser(folder) as page: page.go(url)`."""

    def __init__(self, folder, width=1100, height=900, scheme="light"):
        program = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
        if program is None or os.name != "posix":
            pytest.skip("there is no Chromium to drive: apt-get install chromium, or set CHROME to its path")
        read, write = os.pipe(), os.pipe()  # what Chromium reads as 3, and writes as 4
        ours = {read[1], write[0]}

        def ends():
            for one in ours:
                os.close(one)
            a, b = os.dup(read[0]), os.dup(write[1])
            a, b = (os.dup2(one, 100 + i) for i, one in enumerate((a, b)))
            os.dup2(a, 3), os.dup2(b, 4)

        options = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={folder}/chromium"]
        options += ["--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        options += [f"--window-size={width},{height}", "--hide-scrollbars", "about:blank"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            [program, *options], preexec_fn=ends, close_fds=False, stdout=quiet, stderr=quiet, stdin=quiet
        )
        os.close(read[0]), os.close(write[1])
        self.out, self.into, self.number, self.left, self.events = read[1], write[0], 0, b"", []
        self.session = None
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            self.ask("Page.enable"), self.ask("Runtime.enable"), self.ask("Log.enable")
            self.size(width, height)
            self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        except Exception:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.out), os.close(self.into)

    def ask(self, method, seconds=60, **parameters):
        """The result of a command; the process is given so many seconds."""
        self.number += 1
        told = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            told["sessionId"] = self.session
        os.write(self.out, json.dumps(told).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            while b"\0" not in self.left:
                if not select.select([self.into], [], [], max(0, end - time.monotonic()))[0]:
                    raise TimeoutError(f"Chromium does not answer to {method}")
                got = os.read(self.into, 1 << 20)
                if not got:
                    pytest.skip("Chromium does not start here")
                self.left += got
            one, _, self.left = self.left.partition(b"\0")
            found = json.loads(one)
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def faults(self):
        """What the page's console said of errors, and what was thrown there."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [one["params"] for one in self.events if one.get("method") in kinds]

    def size(self, width, height, dense=1, mobile=False):
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=dense, mobile=mobile
        )

    def go(self, url):
        self.ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script):
        """The value of a JavaScript expression; of a promise what it comes to."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script, seconds=30):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} did not become true"
            time.sleep(0.02)
        return value

    def box(self, selector):
        """Left, top, width and height of an element, in view."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'nearest'}})")
        return self.run(
            f"(b => [b.x, b.y, b.width, b.height])(document.querySelector({selector!r}).getBoundingClientRect())"
        )

    def mouse(self, kind, x, y, buttons=1):
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    def drag(self, points, touch=False):
        """Press at the first point, move through the others, let go."""
        if touch:
            for i, (x, y) in enumerate(points):
                self.ask(
                    "Input.dispatchTouchEvent", type="touchMove" if i else "touchStart", touchPoints=[{"x": x, "y": y}]
                )
            self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            return
        self.mouse("mousePressed", *points[0])
        for x, y in points[1:]:
            self.mouse("mouseMoved", x, y)
        self.mouse("mouseReleased", *points[-1], buttons=0)

    def key(self, name, code=0, text=""):
        more = {"key": name, "code": name if len(name) > 1 else "Space", "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **more)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **more)

    def picture(self, path=None, whole=True):
        """A screenshot as the bytes of a PNG."""
        data = base64.b64decode(self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])
        if path:
            with open(path, "wb") as file:
                file.write(data)
        return data
