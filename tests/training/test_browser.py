"""In a real browser: what the runs and the reports write is what TensorBoard and Chromium show.

Screenshots stay in the folder that the variable SCREENSHOTS names, or in runs/screenshots.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

import manual_backprop as mb
from manual_backprop.training.cli import main

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")

from selenium.common.exceptions import TimeoutException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", Path(__file__).parents[2] / "runs" / "screenshots"))
PATIENCE = 90  # seconds: the machine may be busy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
    pytest.mark.skipif(DRIVER is None, reason="there is no chromedriver: apt-get install chromium-driver"),
]


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Root has no sandbox, a container little shared memory.
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1500,1900"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={tmp_path / 'chromium'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def tensorboard():
    """Starts TensorBoard on a free port of the loopback interface, and gives its address."""
    started = []

    def start(folder):
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
        command += ["--host", "127.0.0.1", "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                return found.group()
        raise AssertionError("TensorBoard did not start")

    yield start
    for process in started:
        process.terminate()
        process.wait()
        process.stderr.close()


def shown(browser, words, what, marks=None):
    """Waits until the page has all the words and as many marks (a CSS selector); a failure names what is missing."""
    missing = []

    def complete(_):
        text = " ".join(browser.find_element(By.TAG_NAME, "body").text.casefold().split())
        missing[:] = [word for word in words if word.casefold() not in text]
        if marks and (count := browser.execute_script(COUNT, marks)) < len(words):
            missing.append(f"{len(words)} of {marks}, but {count}")
        return not missing

    try:
        WebDriverWait(browser, PATIENCE).until(complete)
    except TimeoutException:
        pytest.fail(f"{what} does not show {missing}")
    finally:
        with contextlib.suppress(TimeoutException):  # the projector turns for ever
            WebDriverWait(browser, 10).until(still)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(SCREENSHOTS / f"{what}.png"))


# How many elements of a selector can be seen, those in shadow trees too; an image not before it has arrived.
COUNT = """
const seen = element => element.getBoundingClientRect().width > 0 && element.naturalWidth !== 0;
const inside = root => [...root.querySelectorAll("*")].flatMap(
    element => [element, ...(element.shadowRoot ? inside(element.shadowRoot) : [])]);
return inside(document).filter(element => element.matches(arguments[0]) && seen(element)).length;
"""


def still(browser):
    """Whether it looks the same for a second: all curves have been drawn."""
    before = browser.get_screenshot_as_png()
    time.sleep(1)
    return browser.get_screenshot_as_png() == before


def errors(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 3

    @staticmethod
    def backward(ctx, grad_output):
        return 2 * grad_output


def report():
    return mb.validate(Doubled, (torch.randn(3, 4, dtype=torch.float64, requires_grad=True),), only=("MB1", "MB3"))


def diverging(folder):
    """A run whose second layer has a NaN in it, and whose first is one of ReLUs."""
    model = mb.nn.MLP([4, 3, 2], "relu")
    torch.nn.init.constant_(model[1].weight, torch.nan)
    with SummaryWriter(str(folder)) as writer, mb.Monitor(model, writer, reference=True):
        model(torch.rand(5, 4)).sum().backward()


# By dashboard, with a filter of tags where it opens the groups that are folded: words, and what is drawn, one a word at
# least.
DASHBOARDS = {
    # What one sees first: "Time series", two groups of it unfolded.
    "": (
        ["accuracy3 cards accuracy /test", "accuracy /train", "accuracy /validation", "smoothed", "activations /0",
         "cost", "error", "gradient", "input", "learning_speed", "saturation", "weights"],
        None,
    ),
    "custom_scalars": (
        ["Learning", "cost", "accuracy", "learning speed", "Error δ", "‖δ‖ by layer", "by parameter", "Saturation",
         "share of units with σ′(z) ≈ 0", "share of dead ReLUs", "share of inputs near 0", "Agreement"],
        "path.line",
    ),
    "scalars&tagFilter=error|learning": (["error/0/norm", "error/1/norm", "learning_speed/0.weight"], "path.line"),
    "scalars&tagFilter=cost|accuracy": (["cost/train", "cost/test", "accuracy/test"], "path.line"),
    "scalars&tagFilter=saturation|agreement": (
        ["saturation/0/share", "saturation/0/dead", "agreement/0/weight"], "path.line"
    ),
    "scalars&tagFilter=gradient|input": (["gradient/0.weight/norm", "gradient/1.bias/norm", "input/0"], "path.line"),
    "histograms&tagFilter=delta|z$|0.weight": (
        ["error/0/delta", "error/1/delta", "saturation/0/z", "gradient/0.weight/values", "weights/0.weight"],
        "path.outline",
    ),
    "distributions&tagFilter=activations": (["activations/0", "activations/1"], "path.area"),
    "images&tagFilter=weights|wrong|confusion": (["weights/0.weight/image", "most_wrong", "confusion"], "img"),
    "images&tagFilter=validate": (["validate/0 MB101 x"], "img"),
    "graphs": (["MLP", "input", "output"], ".edgeline, .node"),
    "text": (["config/text_summary", "env/text_summary"], None),
    "text&tagFilter=finite": (["not_finite", "values of 1.weight are NaN or infinite"], None),
    "pr_curves": (["precision_recall/0", "precision_recall/9"], "path.line"),
    "hparams": (["compile final/accuracy_test", "short sigmoid network", "other sigmoid layers"], None),
}  # fmt: skip


def test_tensorboard_shows_every_dashboard(browser, tensorboard, data_root, tmp_path):
    arguments = ["--batch-size", "1000", "--data-root", str(data_root), "--runs", str(tmp_path / "runs"), "--epochs"]
    often, never = (["--inspect-every", every, "--check-every", every] for every in ("10", "0"))
    assert main([*arguments, "3", *often, "--name", "short", "--projector"]) == 0
    assert main([*arguments, "1", *never, "--name", "other", "--backprop", "layers"]) == 0
    with SummaryWriter(str(tmp_path / "runs" / "report")) as writer:
        report().to_tensorboard(writer)
    diverging(tmp_path / "runs" / "diverging")
    address = tensorboard(tmp_path / "runs")
    for page, (words, marks) in DASHBOARDS.items():
        browser.get("about:blank")  # a change of nothing but the fragment would not load the page anew
        browser.get(f"{address}/#{page}")
        shown(browser, words, re.sub(r"\W+", "_", page) or "first", marks)
        assert errors(browser) == [], page
    browser.get("about:blank")
    browser.get(f"{address}/#projector")
    for _ in range(2):  # the page of the plugin is a frame in a frame
        browser.switch_to.frame(WebDriverWait(browser, PATIENCE).until(lambda b: b.find_element(By.TAG_NAME, "iframe")))
    shown(browser, ["Points: 1000", "Dimension: 30"], "projector")
    assert errors(browser) == []


def test_the_report_s_page_shows_its_heat_maps(browser, tmp_path):
    found = report()
    found.to_html(tmp_path / "report.html")
    browser.get(f"file://{tmp_path / 'report.html'}")
    failure = found.failures[0]
    shown(browser, ["Doubled failed", failure.message, failure.cause, failure.repro], "report")
    maps = browser.find_elements(By.CSS_SELECTOR, "svg")
    assert [drawn.accessible_name for drawn in maps[:3]] == ["expected", "actual", "ratio"]
    assert all(drawn.size["width"] > 0 for drawn in maps)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".worst")) == len(maps)
    requests = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert requests == 0
    assert errors(browser) == []
