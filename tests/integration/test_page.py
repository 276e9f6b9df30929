"""The radiologist's page in a real browser, in front of a real service with 1,000 exams."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect
from pydicom import dcmread

from tests.browser import EXAMS, Desk, Hall, chromium, served, sign_in, uid
from tests.conftest import ROOT, SAMPLES, Service, free_port
from triage.pixels import viewing
from triage.send import send
from triage.spool import Spool
from triage.worklist import State

PAGES = (
    "/",
    f"/exams/{uid(24)}",
    f"/exams/{uid(5)}",
    "/adjudication",
    "/dashboard",
    "/operations",
    "/account",
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("page") / "home", free_port) as service:
        yield service


@pytest.fixture(scope="module")
def _hall(running: Service) -> Iterator[Hall]:
    with chromium() as browser:
        yield Hall(browser, running)


@pytest.fixture
def hall(_hall: Hall) -> Iterator[Hall]:
    yield _hall
    _hall.leave()


def test_a_reading_session_goes_by_keyboard_alone(hall: Hall, running: Service) -> None:
    desk = hall.desk("anna")
    desk.list()
    first = desk.cursor()
    desk.press("j", "j", "k")
    second = desk.cursor()
    assert second not in {first, None}
    desk.press("Enter")
    desk.shown(str(second))
    expect(desk.page.locator(".big-score b")).to_have_text(re.compile(r"0\.\d\d"))

    desk.press("h")
    expect(desk.page.locator("#heat")).to_have_attribute("aria-pressed", "true", timeout=60_000)
    desk.says("#heat-words", "proves nothing")
    desk.press("h", "i")
    expect(desk.page.locator("#invert")).to_have_attribute("aria-pressed", "true")

    desk.press("m", "ArrowRight", "ArrowDown", "Enter", "t")
    desk.page.keyboard.type("left lower lobe")
    desk.press("Escape", "c")
    desk.says("#readings", "anna: confirmed")
    desk.says("#readings", "left lower lobe")
    (reading,) = running.worklist().readings.of(str(second))
    assert (reading.verdict, reading.reader, reading.comment) == (
        "confirmed",
        "anna",
        "left lower lobe",
    )
    assert reading.location is not None
    assert reading.location[0] > 0.5 < reading.location[1]

    desk.press("u")
    desk.says("#readings", "Withdrawn")
    assert running.worklist().item(str(second)).state is State.SCORED

    desk.press("n")
    desk.page.wait_for_url(lambda url: str(second) not in url)
    third = desk.page.url.rsplit("/", 1)[1]
    desk.shown(third)
    desk.press("r")
    desk.says("#readings", "anna: rejected")
    assert running.worklist().item(third).state is State.REJECTED

    desk.press("b")
    desk.page.wait_for_selector("#body tr")
    assert desk.page.locator(f'#body tr[data-uid="{third}"]').count() == 0
    assert desk.cursor() is not None
    assert desk.complaints == []


def test_a_new_exam_appears_in_its_place_and_the_cursor_stays(hall: Hall, running: Service) -> None:
    desk = hall.desk("anna")
    desk.list()
    desk.page.wait_for_selector("#live[data-state=live]")
    desk.press(*"jjjj")
    before = desk.cursor()
    place = desk.page.locator("#body tr[aria-selected=true]").bounding_box()
    stat = SAMPLES / "05-dx-ap-opacity-stat.dcm"
    list(send([stat], running.destination))
    instance = dcmread(stat).SOPInstanceUID
    row = desk.page.locator(f'#body tr[data-uid="{instance}"]')
    expect(row).to_contain_text("STAT", timeout=30_000)
    expect(row.locator(".score b")).to_have_text(re.compile(r"\d\.\d+"), timeout=30_000)
    assert desk.cursor() == before
    assert desk.page.locator("#body tr[aria-selected=true]").bounding_box() == place
    order = desk.page.eval_on_selector_all("#body tr", "rows => rows.map(row => row.dataset.uid)")
    assert order.index(instance) < order.index(before)
    assert desk.complaints == []


def test_two_readers_may_disagree_and_a_third_settles_it(hall: Hall, running: Service) -> None:
    number = 101
    anna, ben = hall.desk("anna"), hall.desk("ben")
    # Ben's live rows do not come through: what he sees is stale when he gives his verdict.
    ben.page.route("**/api/v1/live", lambda route: route.abort())
    ben.exam(number)
    anna.exam(number)
    anna.press("c")
    anna.says("#readings", "anna: confirmed")
    ben.press("r")
    ben.says("#toast", "look at its score and readings")
    ben.says("#readings", "anna: confirmed")
    assert len(running.worklist().readings.of(uid(number))) == 1
    ben.press("r")
    ben.says("#readings", "ben: rejected")
    anna.says("#readings", "ben: rejected")

    chief = hall.desk("olga")
    chief.go("/adjudication")
    chief.page.wait_for_selector("#body tr")
    chief.press("j")
    chief.page.wait_for_selector("#body a:focus")
    chief.page.focus(f"text=ACC{number:05d}")
    chief.press("Enter")
    chief.shown(uid(number))
    chief.page.check("#adjudicate")
    chief.press("c")
    chief.says("#readings", "Settles the disagreement.")
    assert [each.verdict for each in running.worklist().readings.of(uid(number))] == [
        "confirmed", "rejected", "confirmed",
    ]  # fmt: skip
    assert running.worklist().item(uid(number)).state is State.CONFIRMED
    chief.go("/adjudication")
    chief.page.wait_for_selector("#empty, #body tr")
    assert chief.page.locator(f"text=ACC{number:05d}").count() == 0
    assert chief.complaints == anna.complaints == []


@pytest.mark.parametrize("number", [45, 46])  # 45 is flagged, 46 is not
def test_a_blind_exam_tells_no_score_before_the_verdict(
    hall: Hall, running: Service, number: int
) -> None:
    item = running.worklist().item(uid(number))
    assert item.flagged is (number == 45)
    told = f"{item.score:.2f}"
    desk = hall.desk("anna")
    desk.exam(number)
    desk.says("#score", "hidden until your verdict")
    assert told not in desk.page.locator("#score-card").inner_text()
    content = desk.page.evaluate(f"fetch('/api/v1/items/{uid(number)}').then(r => r.text())")
    assert '"score":null' in content.replace(" ", "")
    assert str(item.score) not in content
    status = desk.page.evaluate(f"fetch('/exams/{uid(number)}/heat-map').then(r => r.status)")
    assert status == 409
    desk.press("h")
    desk.says("#toast", "no heat map before your verdict")
    desk.complaints.clear()  # of the refused heat map, which was asked for on purpose

    desk.press("c")
    desk.says("#score", told)
    desk.says("#readings", "Read without the score.")
    (reading,) = running.worklist().readings.of(uid(number))
    assert (reading.sampling, reading.blinded) == ("random", True)
    assert desk.complaints == []
    other = hall.desk("ben")
    other.exam(number)
    other.says("#score", "hidden until your verdict")
    assert "anna" not in other.page.locator("#readings").inner_text()


def test_without_a_score_there_is_no_verdict_and_the_row_says_why(hall: Hall) -> None:
    desk = hall.desk("anna")
    desk.list()
    desk.page.check("input[value=unscored]", force=True)
    row = desk.page.locator(f'#body tr[data-uid="{uid(5)}"]')
    expect(row).to_contain_text("The view is not frontal.")
    expect(row).to_contain_text("blurred")
    row.click()
    desk.shown(uid(5))
    desk.says("#score", "View Position is LL, not PA or AP.")
    expect(desk.page.locator("#confirm")).to_be_disabled()
    desk.press("c")
    desk.says("#mark-words", "no finding to confirm or reject")
    assert desk.complaints == []


def test_all_exams_come_by_scrolling_and_search_finds_one(hall: Hall) -> None:
    desk = hall.desk("ben")
    desk.list()
    desk.page.check("input[value=all]", force=True)
    desk.page.wait_for_function("() => document.querySelectorAll('#body tr').length >= 100")
    for _ in range(60):
        desk.page.evaluate("document.querySelector('#rows').scrollTop = 1e9")
        desk.page.wait_for_timeout(50)
        if "more below" not in desk.page.locator("#count").inner_text():
            break
    desk.page.wait_for_function(f"() => document.querySelectorAll('#body tr').length >= {EXAMS}")
    known = desk.page.eval_on_selector_all("#body tr", "rows => rows.map(row => row.dataset.uid)")
    assert len(known) == len(set(known))

    desk.press("/")
    desk.page.keyboard.type("acc00123")
    desk.page.wait_for_function("() => document.querySelectorAll('#body tr').length === 1")
    assert "acc00123" not in desk.page.url
    desk.press("Enter", "Enter")
    desk.shown(uid(123))
    expect(desk.page.locator("#priors a")).to_have_count(1)
    assert desk.complaints == []


def test_the_site_s_own_viewer_is_one_key_away(hall: Hall, running: Service) -> None:
    desk = hall.desk("anna")
    desk.page.context.route("https://viewer.invalid/**", lambda route: route.fulfill(body="viewer"))
    desk.exam(24)
    item = running.worklist().item(uid(24))
    with desk.page.expect_popup() as opened:
        desk.press("v")
    assert opened.value.url == (
        f"https://viewer.invalid/open?study={item.study_instance_uid}&accession=ACC00024"
    )
    assert opened.value.evaluate("window.opener") is None
    assert desk.complaints == []


def test_a_script_in_a_name_stays_text(hall: Hall) -> None:
    desk = hall.desk("anna")
    desk.exam(30)
    desk.says("#patient", "<script>hacked()")
    desk.list()
    desk.page.check("input[value=all]", force=True)
    desk.press("/")
    desk.page.keyboard.type("acc00030")
    expect(desk.page.locator("#body tr")).to_have_count(1)
    expect(desk.page.locator("#body tr")).to_contain_text("<script>hacked()")
    assert desk.page.locator("tbody iframe, tbody script").count() == 0
    assert desk.complaints == []


def test_the_canvas_shows_the_stored_picture_in_its_window(hall: Hall) -> None:
    desk = hall.desk("anna", width=1920, height=1080)
    desk.exam(20)
    desk.page.wait_for_timeout(200)
    content = desk.page.evaluate("document.querySelector('#canvas').toDataURL()").split(",")[1]
    folder = Path(str(hall.service.home)).parent / "canvas.png"
    folder.write_bytes(base64.b64decode(content))
    canvas = np.asarray(Image.open(folder).convert("L"), np.float64)
    item = hall.service.worklist().item(uid(20))
    view = viewing(Spool(hall.service.home / "spool").instance(item.digest))
    assert view.values.shape == (2500, 2048)
    height = canvas.shape[0]
    width = round(2048 * height / 2500)
    shown = np.clip((view.values - view.black) / (view.white - view.black), 0.0, 1.0) * 255.0
    expected = np.asarray(
        Image.fromarray(shown.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    )
    left = (canvas.shape[1] - width) // 2
    inside = canvas[4:-4, left + 4 : left + width - 4]
    assert np.abs(inside - expected[4:-4, 4:-4]).mean() < 2.0
    assert canvas[:, : left - 2].max() == 0

    desk.press("i")
    desk.page.wait_for_timeout(100)
    middle = """() => {
        const canvas = document.querySelector("#canvas");
        const [x, y] = [canvas.width / 2, canvas.height / 2];
        return canvas.getContext("2d").getImageData(x, y, 1, 1).data[0];
    }"""
    inverted = desk.page.evaluate(middle)
    assert abs(inverted - (255 - canvas[height // 2, canvas.shape[1] // 2])) <= 1
    desk.press("0", "+", "+", "Shift+ArrowUp", "Shift+ArrowLeft")
    desk.page.wait_for_function("() => !document.querySelector('#readout').value.includes(' 40 %')")
    assert desk.complaints == []


def test_a_picture_is_kept_by_the_browser_of_who_may_see_it(hall: Hall) -> None:
    desk = hall.desk("vic")
    cookies = {each["name"]: each["value"] for each in desk.page.context.cookies()}
    address = f"{hall.service.page}/exams/{uid(20)}/picture"
    assert httpx.get(address, trust_env=False).status_code == 303
    with httpx.Client(trust_env=False, cookies=cookies) as client:
        first = client.get(address)
        assert first.status_code == 200
        assert len(first.content) == 2 * 2500 * 2048
        assert "private" in first.headers["cache-control"]
        again = client.get(address, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        absent = client.get(f"{hall.service.page}/exams/2.25.1/picture")
        assert absent.status_code == 404


def test_who_may_not_is_told_so(hall: Hall) -> None:
    desk = hall.desk(None)
    desk.go(f"/exams/{uid(24)}")
    assert "/sign-in?next=" in desk.page.url
    desk.page.fill("#name", "vic")
    desk.page.fill("#password", "a wrong password")
    desk.page.click("form[action='/sign-in'] button")
    expect(desk.page.locator("[role=alert]")).to_be_visible()
    desk.complaints.clear()  # the browser itself says 401
    desk.page.fill("#name", "vic")
    desk.page.fill("#password", "correct horse battery staple")
    desk.page.click("form[action='/sign-in'] button")
    desk.shown(uid(24))
    expect(desk.page.locator("#confirm")).to_be_disabled()
    desk.press("c")
    desk.says("#mark-words", "may look, not read")
    assert desk.page.locator("nav >> text=Operations").count() == 0
    assert desk.complaints == []
    desk.go("/operations")
    expect(desk.page.locator("h1")).to_have_text("Forbidden")
    desk.go("/account")
    desk.page.click("text=Sign out")
    desk.page.wait_for_url("**/sign-in")
    desk.go("/dashboard")
    assert "/sign-in" in desk.page.url


def test_a_session_that_ends_leads_to_the_sign_in(hall: Hall) -> None:
    desk = hall.desk(None)
    sign_in(desk.page, desk.url, "vic")
    desk.page.wait_for_selector("#body tr")
    desk.page.context.clear_cookies()
    desk.press("/")
    desk.page.keyboard.type("acc")
    desk.page.wait_for_url("**/sign-in?next=*")


def test_the_theme_is_dark_until_another_is_chosen(hall: Hall) -> None:
    desk = hall.desk("anna")
    desk.list()
    root = desk.page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    desk.page.click("#theme")
    expect(root).to_have_attribute("data-theme", "light")
    desk.page.reload()
    expect(root).to_have_attribute("data-theme", "light")


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("path", ["/sign-in", *PAGES, "help"])
def test_a_page_is_accessible_quiet_and_asks_nobody_else(hall: Hall, path: str, theme: str) -> None:
    desk = hall.desk(None if path == "/sign-in" else "olga")
    desk.page.add_init_script(f"localStorage.setItem('theme', '{theme}')")
    desk.go("/" if path == "help" else path)
    _settled(desk, path)
    found = Axe().run(desk.page).response["violations"]
    serious = [
        (each["id"], each["impact"], [node["html"][:200] for node in each["nodes"][:3]])
        for each in found
        if each["impact"] in {"serious", "critical"}
    ]
    assert serious == []
    assert desk.complaints == []
    assert desk.asked == {desk.url}


def _settled(desk: Desk, path: str) -> None:
    if path.startswith("/exams/"):
        desk.shown(path.rsplit("/", 1)[1])
        # The picture may be there before the words; only they say which cards there are.
        desk.page.wait_for_selector("#journal li", state="attached")
        for card in desk.page.locator("details:not([hidden]) > summary").all():
            card.click()
    elif path in {"/", "help"}:
        desk.page.wait_for_selector("#body tr[aria-selected=true]")
    elif path == "/dashboard":
        desk.page.wait_for_selector("#charts figure")
        for table in desk.page.locator("details > summary").all():
            table.click()
    elif path == "/operations":
        desk.page.wait_for_selector("#panels section")
    if path == "help":
        desk.press("?")
        desk.page.wait_for_selector("dialog[open]")
    desk.page.wait_for_timeout(300)


def test_every_reason_and_note_has_words_on_the_page() -> None:
    words = (ROOT / "triage" / "web" / "static" / "words.js").read_text("utf-8")
    documented = (ROOT / "docs" / "reasons.md").read_text("utf-8")
    first_cells = re.findall(r"^\| (`.*?) \|", documented, re.MULTILINE)
    codes = re.findall(r"`([A-Z_]{4,})`", "\n".join(first_cells))
    assert len(codes) > 20
    assert [code for code in codes if f"  {code}:" not in words] == []
