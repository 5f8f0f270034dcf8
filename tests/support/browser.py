"""A headless Chromium, driven over its DevTools protocol: enough to load a page, press keys and read what is there.

Playwright and Selenium bring a browser or a driver of their own, which CI cannot download; Debian's Chromium needs
neither.
"""

import asyncio
import base64
import itertools
import os
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from flotilla_devcluster import programs

_START_S = 30.0


class Page:
    """One tab. `errors` are exceptions, console errors and refused loads of the page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            if (number := told.get("id")) is not None:
                self._answers.pop(number).set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(told["params"]["exceptionDetails"].get("exception", {}).get("description")))
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.errors.append(str(told["params"]["entry"]["text"]))

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; raises RuntimeError with what the browser says."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        told = await asyncio.wait_for(self._answers[number], 30)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']}")
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, url: str, *, dark: bool = False) -> None:
        """Load a page and wait until it has loaded."""
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            await self.send(f"{domain}.enable")
        scheme = "dark" if dark else "light"
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def js(self, expression: str) -> Any:
        """The value of an expression, a promise's included."""
        told = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    async def until(self, expression: str, *, timeout_s: float = 30.0) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(timeout_s):
            while not await self.js(expression):
                await asyncio.sleep(0.05)

    async def press(self, key: str) -> None:
        """Press and release a key, such as Tab or Enter."""
        text = {"text": "\r"} if key == "Enter" else {}
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
        for type_ in ("keyDown", "keyUp"):
            extra = text if type_ == "keyDown" else {}
            await self.send(
                "Input.dispatchKeyEvent", type=type_, key=key, code=key, windowsVirtualKeyCode=codes[key], **extra
            )

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        told = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))


@asynccontextmanager
async def browser(*, width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
    """A fresh browser with one tab."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            programs.find_debian("chromium"),
            "--headless",
            # Chromium's sandbox refuses root, whom CI runs as; the pages are our own.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            "about:blank",
            env={**os.environ, "HOME": profile},
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        try:
            async with aiohttp.ClientSession() as session:
                socket = await session.ws_connect(await _tab(session, Path(profile), process), max_msg_size=0)
                page = Page(socket)
                try:
                    yield page
                finally:
                    await page.close()
                    await socket.close()
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _tab(session: aiohttp.ClientSession, profile: Path, process: Process) -> str:
    """The address of the tab that the browser started with."""
    announced = profile / "DevToolsActivePort"
    async with asyncio.timeout(_START_S):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"Chromium ended with {process.returncode}")
            if announced.exists() and (lines := announced.read_text().splitlines()):
                async with session.get(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                    pages = [tab for tab in await answer.json() if tab["type"] == "page"]
                if pages:
                    address: str = pages[0]["webSocketDebuggerUrl"]
                    return address
            await asyncio.sleep(0.05)
