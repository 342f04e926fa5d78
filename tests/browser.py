"""A headless Chromium, driven by the WebDriver protocol, which is JSON over HTTP."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


class Browser:
    """One window. Use it as a context."""

    def __init__(self, driver: str, chromium: str, width: int = 1200, height: int = 900) -> None:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        started = next(
            match for line in self.process.stdout if (match := re.search(r"successfully on port (\d+)", line))
        )
        self.root = f"http://127.0.0.1:{started[1]}/session"
        flags = [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={self.profile.name}"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self.root += "/" + self.call("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("", method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait(10)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.profile.cleanup()

    def call(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """One WebDriver command."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, file: Path) -> None:
        self.call("/url", {"url": file.resolve().as_uri()})
        self.settle()

    def script(self, body: str, *args: Any) -> Any:
        return self.call("/execute/sync", {"script": body, "args": list(args)})

    def settle(self) -> None:
        """Waits until what was asked for is drawn."""
        self.call(
            "/execute/async",
            {
                "script": "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))",
                "args": [],
            },
        )

    def find(self, selector: str) -> str:
        return str(self.call("/element", {"using": "css selector", "value": selector})[ELEMENT])

    def click(self, selector: str) -> None:
        self.call(f"/element/{self.find(selector)}/click", {})
        self.settle()

    def type(self, selector: str, text: str) -> None:
        self.call(f"/element/{self.find(selector)}/clear", {})
        self.call(f"/element/{self.find(selector)}/value", {"text": text})
        self.settle()

    def texts(self, selector: str) -> list[str]:
        """The text of every element that is displayed."""
        return list(
            self.script(
                "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.textContent)",
                selector,
            )
        )

    def count(self, selector: str) -> int:
        return int(self.script("return document.querySelectorAll(arguments[0]).length", selector))

    def hover(self, selector: str, x: float, y: float) -> None:
        """Moves the pointer to a place inside an element, pixels from its upper left corner."""
        corner = self.script(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top]",
            selector,
        )
        move = {"type": "pointerMove", "x": round(corner[0] + x), "y": round(corner[1] + y), "duration": 0}
        self.call("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})
        self.settle()

    def devtools(self, command: str, **params: Any) -> Any:
        return self.call("/goog/cdp/execute", {"cmd": command, "params": params})

    def log(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.call("/se/log", {"type": "browser"})]

    def screenshot(self, file: Path) -> None:
        """The whole page."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))
