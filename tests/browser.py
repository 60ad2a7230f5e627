"""A headless Chromium, driven through a pipe: what it shows of a page, what it complains of."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

PROGRAM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
"""None where there is no browser."""

_SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")


class Browser:
    """One page of a browser; use it as a context.

    Attributes:
        complaints: what the console was told, and requests that left the file.
    """

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self.complaints: list[str] = []
        self._number = 0
        self._session = None

    def __enter__(self) -> "Browser":
        read_commands, write_commands = os.pipe()
        read_answers, write_answers = os.pipe()
        # The browser reads file descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
        profile = f"--user-data-dir={self._profile}"
        self._process = subprocess.Popen(
            ["bash", "-c", script, "browser", PROGRAM, *_SWITCHES, profile, "about:blank"],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._commands = os.fdopen(write_commands, "wb", buffering=0)
        self._answers = os.fdopen(read_answers, "rb")
        self._unread = b""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self(f"{part}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._commands.close()
        self._answers.close()

    def __call__(self, method: str, **parameters: object) -> dict:
        """Sends one command and waits for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self._unread:
            more = self._answers.read1(1 << 20)
            assert more, "the browser has gone"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters))
        if method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.complaints.append(f"request of {url}")

    def open(self, page: Path, *, width: int, dark: bool = False, height: int = 844) -> None:
        """Shows a file on a screen of this width, as a phone does where it is narrow."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self("Emulation.setDeviceMetricsOverride", **screen)
        self("Emulation.setEmulatedMedia", features=features)
        self("Page.navigate", url=page.absolute().as_uri())
        while (event := self._next()).get("method") != "Page.loadEventFired":
            self._note(event)

    def evaluate(self, expression: str) -> object:
        """The value of a JavaScript expression on the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def picture(self, *, whole: bool = True) -> bytes:
        """A PNG of the page."""
        shot = self("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])
