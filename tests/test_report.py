"""The page of a report, in headless Chromium: it opens without a word on the console and shows what is asked for."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import graphc as gc
from graphc.cli.main import main
from graphc.errors import GraphcError
from graphc_runtime.profile import KernelTime, Profile

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def compiled(name: str, shape: tuple[int, int, int]) -> gc.Module:
    x, y = gc.input("x", ("N", *shape)), gc.input("y", ("N",), dtype="int32")
    logits = getattr(gc.models, name)(x)
    loss, sgd = gc.losses.cross_entropy(logits, y), gc.SGD(lr=0.05, momentum=0.9)
    return gc.compile({"logits": logits}, loss, sgd, batch=2, name=name)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the LeNet, with a profile of two kernels."""
    kernels = (
        KernelTime(0, "conv1_conv2d", ("conv1",), ("net.py:1",), 2e-4, 10_000_000, 100_000),
        KernelTime(1, "fc_matmul", ("fc",), ("net.py:2",), 1e-4, 1_000_000, 500_000),
    )
    machine = {"fma_gflops": 200.0, "bandwidth_gb_s": 20.0}
    profile = Profile("lenet", "predict", 2, 1, 5, kernels, machine)
    return gc.report(
        compiled("lenet", (1, 32, 32)), tmp_path_factory.mktemp("report") / "lenet.html", [profile]
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip("chromium or chromedriver is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


def opened(browser: Any, page: Path) -> Any:
    """Return the browser with the page drawn."""
    browser.get(f"file://{page}")
    end = time.monotonic() + 30
    while browser.execute_script("return document.body.dataset.ready") != "yes":
        assert time.monotonic() < end, browser.get_log("browser")
        time.sleep(0.02)
    return browser


def shown(browser: Any, tab: str) -> str:
    text: str = browser.execute_script("return document.getElementById(arguments[0]).textContent", tab)
    return text


def test_the_page_is_explored(browser: Any, page: Path, tmp_path: Path) -> None:
    """Search, click, formula, kernel, source, memory, time; and nothing on the console."""
    opened(browser, page)
    browser.find_element("id", "search").send_keys("relu")
    found = browser.find_elements("css selector", "#matches button")
    assert len(found) == 4
    found[0].click()
    node = shown(browser, "node")
    assert "float32(N, 6, 14, 14)" in node and "test_report.py" in node
    assert browser.find_elements("css selector", "#node math mtable"), "the choice is drawn as cases"
    assert browser.execute_script("return state.cy.nodes('.chosen').length") == 1
    browser.find_element("css selector", "#node [data-kernel]").click()
    code = shown(browser, "code")
    assert code.startswith("/* conv1_conv2d") and code.rstrip().endswith("}")
    assert browser.find_elements("css selector", "#code .hljs-comment")
    browser.execute_script("document.getElementById('source').dispatchEvent(new Event('mouseover'))")
    lit = browser.execute_script("return state.cy.nodes('.lit').map((n) => n.id())")
    assert "conv1" in lit and found
    browser.find_element("css selector", "nav [data-tab=memory]").click()
    buffers = json.loads(data_of(page))["plans"]["predict"]["buffers"]
    assert len(browser.find_elements("css selector", "#map rect")) == len(buffers)
    browser.find_element("css selector", "nav [data-tab=time]").click()
    assert len(browser.find_elements("css selector", "#time .bars rect")) == 2
    assert len(browser.find_elements("css selector", "#time .roofline circle")) == 2
    assert browser.save_screenshot(str(tmp_path / "shot.png"))
    assert (tmp_path / "shot.png").read_bytes().startswith(b"\x89PNG")
    assert browser.get_log("browser") == []


def test_every_level_is_drawn(browser: Any, page: Path) -> None:
    """A click on a node of the drawing chooses it, too."""
    opened(browser, page)
    levels = json.loads(data_of(page))["levels"]
    assert [level["id"] for level in levels] == [
        "written", "predict", "predict-kernels", "train_step", "train_step-kernels"
    ]  # fmt: skip
    for level in levels:
        browser.execute_script("draw(data.levels.find((l) => l.id === arguments[0]))", level["id"])
        drawn = browser.execute_script("return state.cy.nodes().length")
        assert drawn == len(level["nodes"])
        name = level["nodes"][-1]["name"]
        browser.execute_script("state.cy.getElementById(arguments[0]).emit('tap')", name)
        assert shown(browser, "node").startswith(name)
    assert browser.get_log("browser") == []


def test_a_large_net_is_drawn_as_blocks(browser: Any, tmp_path: Path) -> None:
    """Which open with a click; searching opens the block that a node is in."""
    page = gc.report(compiled("resnet_cifar", (3, 16, 16)), tmp_path / "resnet.html")
    opened(browser, page)
    blocks = browser.execute_script("return state.cy.nodes('.block').map((n) => n.data('block'))")
    assert "layer1.0" in blocks and len(blocks) < 20
    browser.execute_script("state.cy.getElementById('block:layer1.0').emit('tap')")
    assert browser.execute_script("return state.block") == "layer1.0"
    browser.find_element("id", "up").click()
    browser.find_element("id", "search").send_keys("layer3.2.conv2")
    browser.find_element("css selector", "#matches button").click()
    assert browser.execute_script("return state.block") == "layer3.2"
    assert browser.get_log("browser") == []


def data_of(page: Path) -> str:
    match = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL
    )
    assert match is not None
    return match[1].replace("<\\/", "</")


def test_the_page_needs_nothing_else(page: Path) -> None:
    """No address is fetched, every kernel has its text, and every kernel of training comes from some node."""
    text = page.read_text()
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", text)
    assert len(text) < 2_000_000
    data = json.loads(data_of(page))
    for kernels in data["kernels"].values():
        for kernel in kernels:
            assert "{" in data["texts"][kernel["text"]] or kernel["function"] in ("memcpy", "memset")
    step = next(level for level in data["levels"] if level["id"] == "train_step")
    computed = {k for node in step["nodes"] for k in node["kernels"]}
    assert len(computed) >= 0.9 * len(data["kernels"]["train_step"])
    for level in data["levels"]:
        names = {node["name"] for node in level["nodes"]}
        assert all(set(node["inputs"]) <= names for node in level["nodes"])


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lenet.html"
    assert main(["inspect", "model:lenet", "--html", str(file)]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    assert file.read_text().startswith("<!doctype html>")
    assert main(["inspect", "model:lenet", "--html", str(tmp_path / "missing" / "x.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(GraphcError, match=r"report: .*Is a directory"):
        gc.report(compiled("lenet", (1, 32, 32)), tmp_path)
