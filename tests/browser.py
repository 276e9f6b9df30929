"""A served instance with a thousand exams, and Debian's Chromium in front of it."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from pydicom import Dataset, dcmread

from sample_dicom.draw import Exam, as_dx
from tests.builders import encoded
from tests.conftest import MEMORY, SAMPLES, Service, wait_for
from tests.web import PASSWORD, account
from triage import app
from triage.config import Config
from triage.identity import Instance
from triage.scoring import Score
from triage.spool import Spool
from triage.worklist import Arrival, Worklist
from triage.worklist.accounts import Role

PEOPLE = {
    "anna": (Role.READER,),
    "ben": (Role.READER,),
    "olga": (Role.OPERATOR, Role.READER),
    "vic": (Role.VIEWER,),
}

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

SCRIPT = "<script>hacked()</script>^<iframe src>"
"""A Patient's Name as a hostile console would send it; run, it would be an error to hear of."""

VIEWER = "https://viewer.invalid/open?study={study_instance_uid}&accession={accession_number}"
"""The site's own."""

EXAMS = 1_000


def filled(config: Config, exams: int = EXAMS) -> None:
    """Fill a home as the receiver and the worker would: files in the spool, rows by services.

    Exam ``n`` has the UID ``2.25.<10000 + n>``. Every 11th is not scored, every 7th is flagged;
    exam 20 is a radiograph of 10 MB, exam 30 has a script for a name, exams 40 to 49 are blind.
    None is ordered STAT.
    """
    app.prepare(config)
    spool = Spool(config.spool_folder)
    spool.prepare()
    worklist, blind = (Worklist(config.worklist_url, blind_share=share) for share in (0.0, 1.0))
    drawn = [dcmread(path) for path in sorted(SAMPLES.glob("0[1-46-9]*.dcm"))]
    model = app.registry(config).champion()
    for name, roles in PEOPLE.items():
        account(worklist, name, *roles)
    contents: dict[int, tuple[str, bytes]] = {}
    for number in range(exams):
        which = -1 if number == 20 else number % len(drawn)
        dataset = large() if which == -1 else drawn[which]
        if which not in contents:
            content = encoded(dataset)
            contents[which] = hashlib.sha256(content).hexdigest(), content
            spool.put(*contents[which])
        digest, content = contents[which]
        _describe(dataset, number)
        worklist.receive(
            Arrival(
                Instance.of(dataset), str(dataset.file_meta.TransferSyntaxUID),
                f"ROOM{number % 4}", "127.0.0.1", digest, len(content),
            )
        )  # fmt: skip
        into = blind if 40 <= number < 50 else worklist
        claim = into.claim("filler")
        assert claim is not None
        if number % 11 == 5:
            into.not_scored(
                claim, "VIEW_NOT_FRONTAL", "View Position is LL, not PA or AP", ("BLURRED",)
            )
            continue
        flagged = number % 7 == 3
        above = model.threshold + (1.0 - model.threshold) * (number * 37 % 347) / 350
        probability = above if flagged else model.threshold * (number % 60) / 61
        notes = ("ROTATED",) if number % 5 == 0 else ()
        into.scored(claim, Score(probability, model.threshold, model.version), notes)
    for each in (worklist, blind):
        each.close()


def uid(number: int) -> str:
    """Of an exam that :func:`filled` makes."""
    return f"2.25.{10_000 + number}"


def _describe(dataset: Dataset, number: int) -> None:
    dataset.SOPInstanceUID = uid(number)
    dataset.AccessionNumber = f"ACC{number:05d}"
    dataset.PatientID = f"P{number // 2:04d}"
    dataset.PatientName = SCRIPT if number == 30 else f"Child^Number {number}"


def large() -> Dataset:
    """A drawn radiograph of 10 MB: 2500 x 2048 pixels of 12 bits."""
    small = dcmread(SAMPLES / "01-dx-pa-12bit.dcm").pixel_array.astype(np.float32)
    picture = np.asarray(Image.fromarray(small).resize((2048, 2500), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(1).normal(0.0, 8.0, picture.shape)
    return as_dx(np.clip((picture + noise) / 4095.0, 0.0, 1.0), Exam(number=900))


@dataclass
class Desk:
    """A reader's desk: a browser that has signed in, and all that went wrong in it.

    Attributes
    ----------
    page : Page
    complaints : list of str
        Errors of the console and of scripts.
    asked : set of str
        The origins that were asked for anything.
    """

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Listen."""
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "request", lambda request: self.asked.add("/".join(request.url.split("/")[:3]))
        )

    def _console(self, message: object) -> None:
        if message.type in {"error", "warning"}:  # type: ignore[attr-defined]
            self.complaints.append(message.text)  # type: ignore[attr-defined]

    def go(self, path: str) -> None:
        """Load a page of ours."""
        self.page.goto(self.url + path)

    def press(self, *names: str) -> None:
        """Press keys, one after the other."""
        for name in names:
            self.page.keyboard.press(name)

    def list(self) -> None:
        """Show the list and wait for its rows."""
        self.go("/")
        self.page.wait_for_selector("#body tr[aria-selected=true]")

    def exam(self, number: int) -> None:
        """Show an exam and wait for its picture."""
        self.go(f"/exams/{uid(number)}")
        self.shown(uid(number))

    def shown(self, sop_instance_uid: str) -> None:
        """Wait until an exam's picture and words are on the screen."""
        both = f'#exam[data-shown="{sop_instance_uid}"][data-told="{sop_instance_uid}"]'
        self.page.wait_for_selector(both)

    def says(self, selector: str, words: str) -> None:
        """Wait until a place says some words."""
        self.page.wait_for_function(
            "([selector, words]) => document.querySelector(selector)?.textContent.includes(words)",
            arg=[selector, words],
        )

    def cursor(self) -> str | None:
        """The UID of the row that the cursor is on."""
        return self.page.locator("#body tr[aria-selected=true]").get_attribute("data-uid")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without a screen."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def sign_in(page: Page, url: str, name: str, password: str = PASSWORD) -> None:
    """Fill in the form."""
    page.goto(f"{url}/sign-in")
    page.fill("#name", name)
    page.fill("#password", password)
    page.click("form[action='/sign-in'] button")


class Hall:
    """Desks in front of one service.

    Parameters
    ----------
    browser : Browser
    service : Service
    """

    def __init__(self, browser: Browser, service: Service) -> None:
        self._browser, self.service = browser, service
        self._states: dict[str, object] = {}
        self._open: list[BrowserContext] = []

    def desk(self, name: str | None, *, width: int = 1280, height: int = 800) -> Desk:
        """Sit down, signed in as somebody or not."""
        options = {"viewport": {"width": width, "height": height}}
        if name is not None and name not in self._states:
            context = self._browser.new_context()
            sign_in(context.new_page(), self.service.page, name)
            context.pages[0].wait_for_url(f"{self.service.page}/")
            self._states[name] = context.storage_state()
            context.close()
        state = None if name is None else self._states[name]
        context = self._browser.new_context(storage_state=state, **options)  # type: ignore[arg-type]
        self._open.append(context)
        return Desk(context.new_page(), self.service.page)

    def leave(self) -> None:
        """Close what is open."""
        while self._open:
            with suppress(Exception):
                self._open.pop().close()


@contextmanager
def served(home: Path, free_port: Callable[[], int], exams: int = EXAMS) -> Iterator[Service]:
    """A real ``triage serve`` on a filled home, in memory where there is such a folder.

    Four thousand transactions that each wait for a disk take longer than all the tests.
    """
    with ExitStack() as kept:
        if MEMORY.is_dir():
            home = Path(kept.enter_context(tempfile.TemporaryDirectory(dir=MEMORY))) / "home"
        yield kept.enter_context(_served(home, free_port, exams))


@contextmanager
def _served(home: Path, free_port: Callable[[], int], exams: int) -> Iterator[Service]:
    filled(Config(home=home), exams)
    service = Service(home, free_port(), {"TRIAGE_BLIND_SAMPLE": "0", "TRIAGE_VIEWER_URL": VIEWER})
    service.start(wait=False)
    try:
        wait_for(service.answers, 120)
        wait_for(service.shows_page, 120)
        yield service
    finally:
        service.stop()
