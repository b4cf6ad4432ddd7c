"""A page in headless Chromium."""

import importlib.util
from pathlib import Path

SIZES = {"desktop": (1280, 900), "phone": (360, 780)}


def open_page(chrome, page, size, dark):
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600},
    )
    chrome.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    )
    chrome.get(page.as_uri())


def serious_faults(chrome):
    """What axe-core finds on the open page."""
    # The package that carries axe-core also drives playwright, which is not needed to read a file of it.
    axe = Path(importlib.util.find_spec("axe_playwright_python").origin).parent / "axe.min.js"
    chrome.execute_script(axe.read_text(encoding="utf-8"))
    faults = chrome.execute_async_script("""
        const done = arguments[0];
        axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations.map(
            v => [v.impact, v.id, ...v.nodes.map(n => n.html.slice(0, 200))])))""")
    return [fault for fault in faults if fault[0] in ("serious", "critical")]
