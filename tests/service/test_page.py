"""The page as a person uses it, in a real browser, on the real service."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pyarrow as pa
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from search.constructed import rows, shard_folder, units
from serving import (
    CLIPS,
    RUN,
    LocalService,
    add_embeddings,
    add_tracks,
    clip,
    copied_library,
    local_service,
    save_run,
    shared_library,
)

from songray.keys import track_key
from songray.library import Library
from songray.search.build import IndexConfig, index
from songray.search.hnsw import GraphOptions
from songray.search.index import Index
from songray.search.project import ProjectConfig, project
from songray.search.shard import Shard
from songray.search.version import ShardEntry, Version
from songray.service.api_keys import VARIABLE
from songray.service.options import IngressConfig
from songray.service.snapshots import find_version

OPTIONS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--autoplay-policy=no-user-gesture-required"]


@pytest.fixture(scope="module")
def indexed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Tracks whose vectors point in all directions; those of tones are all alike."""
    library, folder = copied_library(tmp_path_factory)
    for number in range(CLIPS):
        clip(folder, number)
    table = library.table("embeddings", RUN)
    table.delete(table.files())
    vectors = np.random.default_rng(0).normal(size=(CLIPS, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"t:{number}" for number in range(CLIPS)]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
    keys = pa.array([track_key(track_id, 0) for track_id in ids], pa.int64())
    table.append(pa.table({"track_key": keys, "track_id": ids, "embedding": column}), "random")
    project(library, ProjectConfig(run=RUN, method="pca"))
    index(library, IndexConfig(run=RUN, compact=True))
    return library


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("the page is tested with chromium, which is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def preview(tmp_path: Path) -> bytes:
    return clip(tmp_path, 1)


@pytest.fixture
def page(browser: Browser, indexed: Library, preview: bytes) -> Iterator[Page]:
    """The page on a wide screen; at the end its console has shown no error."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.route("https://x.test/*", lambda route: route.fulfill(body=preview, content_type="audio/flac"))
    with local_service(indexed, IngressConfig()) as url:
        page.goto(url)
        expect(page.locator("#list > li")).to_have_count(CLIPS)
        yield page
        context.close()
    assert problems == []


def test_a_track_is_found_played_and_its_neighbours_are_listed(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("bjork 12")
    first = page.locator("#list > li").first
    expect(first.locator(".title")).to_have_text("Björk 12")
    first.locator(".title").click()
    expect(page.locator("#status")).to_have_text("Most similar to “Björk 12” by The Knife 3:")
    expect(page.locator("#list .similarity")).to_have_count(18)  # three of each artist
    page.get_by_role("button", name="Remove Björk 12", exact=True).click()
    expect(page.locator("#list > li")).to_have_count(CLIPS)
    page.get_by_role("button", name="Play Björk 12", exact=True).click()  # a file, with a range
    expect(page.locator("#player-title")).to_have_text("Björk 12 · The Knife 3")
    expect(page.locator("#player-time")).to_contain_text("/ 0:0")
    assert page.locator("#audio").evaluate("audio => audio.duration") > 1


def test_keys_walk_the_list_play_and_go_back(page: Page) -> None:
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("h1").click()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    expect(page.locator("#list > li.current .title")).to_be_focused()
    second = page.locator("#list > li").nth(1).locator(".title").inner_text()
    page.keyboard.press("Space")
    expect(page.locator("#player-title")).to_contain_text(second)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text(f"Most similar to “{second}”")
    page.keyboard.press("Escape")
    expect(page.locator("#list > li")).to_have_count(CLIPS)
    page.go_back()
    expect(page.locator("#status")).to_contain_text(f"Most similar to “{second}”")


def test_recommendations_follow_likes_and_dislikes(page: Page) -> None:
    page.get_by_role("button", name="Björk 3", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Most similar to “Björk 3”")
    liked, disliked = (
        page.locator("#list > li").nth(place).locator(".title").inner_text() for place in (0, 5)
    )
    page.get_by_role("button", name=f"Less like {disliked}", exact=True).click()
    expect(page.locator("#status")).to_have_text("Recommended:")
    expect(page.get_by_role("button", name=disliked, exact=True)).to_have_count(0)
    page.get_by_role("button", name=f"More like {liked}", exact=True).click()
    expect(page.locator("#seeds > span")).to_have_count(3)
    page.locator("#diversity").fill("0.8")
    expect(page).to_have_url(re.compile("diversity=0.8"))
    expect(page.locator("#list .why").first).to_contain_text("near “Björk")
    page.reload()
    expect(page.locator("#seeds > span")).to_have_count(3)
    page.locator("#list .similarity").first.click()
    expect(page.locator("#list .similarity").first).to_contain_text("cos ")


def test_filters_restrict_what_is_recommended(page: Page) -> None:
    expect(page.locator("#filters")).to_be_hidden()  # a search has none
    page.get_by_role("button", name="Björk 3", exact=True).click()
    page.locator("#filters summary").click()
    page.get_by_label("Genres").fill("Folk")
    page.get_by_label("First year").fill("1990")
    page.get_by_label("First year").press("Tab")
    expect(page.locator("#filter-count")).to_have_text("(2)")
    expect(page.locator("#list > li").first).to_contain_text("Folk")
    numbers = [int(title.split()[1]) for title in page.locator("#list .title").all_inner_texts()]
    assert numbers and all(number >= 10 and number % 2 == 0 for number in numbers)
    page.get_by_label("Genres").fill("Polka")
    page.get_by_label("Genres").press("Tab")
    expect(page.locator("#status")).to_have_text("No track matches the filters.")
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator("#list .similarity")).to_have_count(18)


def test_a_playlist_is_made_ordered_saved_and_shared(page: Page) -> None:
    for name in ("Björk 1", "Björk 2", "Björk 3"):
        page.get_by_role("button", name=f"Add {name} to the playlist", exact=True).click()
    titles = page.locator("#tray-list .title")
    expect(titles).to_have_text(["Björk 1", "Björk 2", "Björk 3"])
    page.get_by_role("button", name="Move Björk 3 up", exact=True).click()
    expect(titles).to_have_text(["Björk 1", "Björk 3", "Björk 2"])
    page.get_by_role("button", name="Remove Björk 2 from the playlist", exact=True).click()
    page.reload()  # the address holds it
    expect(titles).to_have_text(["Björk 1", "Björk 3"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[1::2] == ["#EXTINF:101,The Knife 0 - Björk 1", "#EXTINF:103,The Knife 0 - Björk 3"]
    assert lines[2] == "https://x.test/1.mp3" and lines[4].endswith("/audio/t%3A3")
    page.get_by_role("button", name="Route").click()
    expect(page.locator("#status")).to_contain_text("from “Björk 1” by The Knife 0 to “Björk 3”")


def point_of(page: Page, track_id: str) -> tuple[float, float]:
    """The place of a track on the screen, by what the service says of the map."""
    base = page.url.partition("#")[0]
    every = [("track", f"t:{number}") for number in range(CLIPS)]
    places = page.request.get(f"{base}v1/points/positions?{urlencode(every)}").json()["positions"]
    x, y = ([place[axis] for place in places.values()] for axis in (0, 1))
    box = page.locator("#points").bounding_box()
    assert box is not None
    across = (places[track_id][0] - min(x)) / (max(x) - min(x)) - 0.5
    up = (places[track_id][1] - min(y)) / (max(y) - min(y)) - 0.5
    width, top, height = box["width"], 48, box["height"] - 48  # the controls cover the top
    return box["x"] + width * (0.5 + 0.92 * across), box["y"] + top + height * (0.5 - 0.92 * up)


def test_a_playlist_is_played_through(page: Page) -> None:
    for name in ("Björk 3", "Björk 6"):
        page.get_by_role("button", name=f"Add {name} to the playlist", exact=True).click()
    page.get_by_role("button", name="Play all").click()
    expect(page.locator("#player-title")).to_have_text("Björk 3 · The Knife 0")
    expect(page.locator("#player-time")).to_contain_text("/ 0:0")
    page.locator("#audio").evaluate("audio => { audio.currentTime = audio.duration - 0.1; }")
    expect(page.locator("#player-title")).to_have_text("Björk 6 · The Knife 1")
    page.get_by_role("button", name="Play or pause").click()
    expect(page.locator("#player-toggle")).to_have_text("▶")


def test_two_fingers_zoom_and_one_moves_the_map(page: Page) -> None:
    page.locator("#color").select_option("album")  # one color: no album is known
    box = page.locator("#points").bounding_box()
    assert box is not None
    x, y = point_of(page, "t:12")
    page.mouse.move(x, y)
    expect(page.locator("#tip")).to_contain_text("Björk 12")
    page.locator("#points").evaluate(
        """(canvas, [x, y]) => {
            const send = (type, id, dx) => canvas.dispatchEvent(new PointerEvent(type, {
                pointerId: id, pointerType: "touch", clientX: x + dx, clientY: y, bubbles: true }));
            canvas.setPointerCapture = () => {};
            send("pointerdown", 1, -20); send("pointerdown", 2, 20);
            for (let spread = 20; spread <= 200; spread += 20)
                for (const finger of [1, 2]) send("pointermove", finger, finger === 1 ? -spread : spread);
            send("pointerup", 1, -200); send("pointerup", 2, 200);
            send("pointerdown", 3, 0); send("pointermove", 3, 60); send("pointerup", 3, 60);
        }""",
        [x, y],
    )
    page.mouse.move(0, 0)
    page.mouse.move(x + 60, y)  # the point went along
    expect(page.locator("#tip")).to_contain_text("Björk 12")


def test_without_a_network_the_page_says_so_and_goes_on_with_it(browser: Browser, indexed: Library) -> None:
    with local_service(indexed, IngressConfig()) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#list > li")).to_have_count(CLIPS)
        page.context.set_offline(True)
        page.get_by_role("button", name="Björk 3", exact=True).click()
        expect(page.locator("#status")).to_contain_text("You are offline.")
        page.context.set_offline(False)
        expect(page.locator("#status")).to_contain_text("Most similar to “Björk 3”")
        page.close()


def test_a_slow_answer_is_announced(page: Page) -> None:
    held: list[Route] = []
    page.route("**/similar?*", lambda route: held.append(route))
    page.get_by_role("button", name="Björk 3", exact=True).click()
    expect(page.locator("#status")).to_have_text("Searching…")
    held[0].continue_()
    expect(page.locator("#status")).to_contain_text("Most similar to “Björk 3”")


def test_points_are_named_chosen_and_surrounded(page: Page) -> None:
    expect(page.locator("#legend button")).to_have_text(["Electro (12)", "Folk (12)"])
    x, y = point_of(page, "t:12")
    page.mouse.move(x + 2, y)
    expect(page.locator("#tip")).to_contain_text("Björk 12")
    page.mouse.click(x + 2, y)
    expect(page.locator("#status")).to_contain_text("Most similar to “Björk 12”")
    expect(page.locator("#player-title")).to_contain_text("Björk 12")
    page.keyboard.down("Shift")
    page.mouse.move(x - 6, y - 6)
    page.mouse.down()
    for dx, dy in ((6, -6), (6, 6), (-6, 6)):
        page.mouse.move(x + dx, y + dy)
    page.mouse.up()
    page.keyboard.up("Shift")
    expect(page.locator("#tray-list")).to_contain_text("Björk 12")
    page.locator("#color").select_option("year")
    expect(page.locator("#legend .ends")).to_have_text("19802003")
    page.locator("#color").select_option("cluster")
    expect(page.locator("#legend button").first).to_have_text(re.compile(r"1: (Electro|Folk) \(\d+\)"))
    expect(page.locator("#map-facts")).to_have_text(re.compile(r"PCA map: trustworthiness 0\.\d\d"))
    page.locator("#color").select_option("similarity")
    expect(page.locator("#legend .ends")).to_contain_text("1.00")
    page.locator("#color").select_option("genre")
    page.get_by_role("button", name="Folk (12)").click()
    page.mouse.move(0, 0)
    page.mouse.move(x + 2, y)  # Björk 12 is hidden
    expect(page.locator("#tip")).to_be_hidden()


@pytest.mark.slow
def test_a_map_of_more_than_100_000_tracks_shows_more_of_them_where_it_is_zoomed(
    browser: Browser, tmp_path: Path, library: Library
) -> None:
    count, options = 105_000, GraphOptions({"M": 4, "ef_construction": 10}, recall_target=0.1)
    folder = shard_folder(tmp_path / "shard", units(count, 4), rows(count), options=options)
    entry = ShardEntry("1", count, "", 16, 1.0, {})
    version = Version("large", "000001", count, 4, options.parameters, 16, 1.0, 0.1, [entry], {})
    service = LocalService.__new__(LocalService)
    service.library, service.vector, service.other = library, None, None
    service.index = Index(version, [Shard(folder)])
    with local_service(library, IngressConfig(), service=service) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        with page.expect_response("**/v1/points?*") as whole:
            page.goto(url)
        assert described_points(whole.value.body()) == (100_000, count)
        of_the_whole = re.compile(r"\(2\d{4}\)")
        expect(page.locator("#legend button").first).to_contain_text(of_the_whole)
        with page.expect_response("**/v1/points?*bbox=*") as part:
            for _ in range(3):
                page.locator("#zoom-in").click()
        (box,) = parse_qs(urlsplit(part.value.url).query)["bbox"]
        inside = len(service.index.shards[0].points(tuple(map(float, box.split(","))), count))
        assert described_points(part.value.body()) == (inside, count) and 1000 < inside < 90_000
        total = page.locator("#legend button")
        expect(total).to_have_count(4)
        expect(total.first).not_to_contain_text(of_the_whole)
        numbers = [int(text.split("(")[1].rstrip(")")) for text in total.all_inner_texts()]
        assert sum(numbers) == inside
        page.close()


def described_points(body: bytes) -> tuple[int, int]:
    """The number of points in a response of /v1/points, and of the tracks of the index."""
    head = json.loads(body[4 : 4 + int.from_bytes(body[:4], "little")])
    return head["count"], head["tracks"]


OTHER = "mfcc-y"


@pytest.fixture(scope="module")
def two_runs(indexed: Library, tmp_path_factory: pytest.TempPathFactory) -> LocalService:
    """The service, which compares its run with another one."""
    save_run(indexed, OTHER, coefficients=2)
    add_embeddings(indexed, shared_library(tmp_path_factory)[1], range(CLIPS), OTHER)
    index(indexed, IndexConfig(run=OTHER, links=8))
    service = LocalService(indexed)
    service.other = Index.open(indexed, find_version(indexed, OTHER))
    return service


def test_two_runs_are_compared_blind_and_judgements_are_stored(
    browser: Browser, two_runs: LocalService
) -> None:
    library = two_runs.library
    with local_service(library, IngressConfig(), service=two_runs) as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("#status")).to_contain_text("Which list sounds more like “Björk")
        expect(page.locator("#list > li")).to_have_count(1)  # the track, to be played
        expect(page.locator("#comparison ol")).to_have_count(2)
        expect(page.locator("#comparison ol").first.locator("li")).to_have_count(5)
        assert RUN not in page.content() and OTHER not in page.content()
        first = page.locator("#status").inner_text()
        page.get_by_role("button", name="A sounds more like it").click()
        answer = page.locator("#comparison [role=status]")
        expect(answer).to_have_text(
            re.compile("A was (mfcc-.), B was (mfcc-.). You preferred: \\1 1, \\2 0.")
        )
        preferred = re.search(r"A was (\S+),", answer.inner_text())
        page.get_by_role("button", name="Another track").click()
        expect(page.locator("#status")).not_to_have_text(first)
        page.route(
            "**/v1/judgements", lambda route: route.fulfill(status=503, json={"detail": "It is read-only."})
        )
        page.get_by_role("button", name="No difference").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download judgements (1)").click()
        header, row = Path(download.value.path()).read_text().splitlines()
        assert header == "session,at,track_id,left,right,preferred" and row.endswith('"neither"')
        page.close()
    (stored,) = library.table("judgements").read().to_pylist()
    assert stored["preferred"] == "left" and preferred and stored["left"] == preferred[1]
    assert stored["session"] in row


def test_a_dropped_file_is_answered(browser: Browser, indexed: Library, tmp_path: Path) -> None:
    service = LocalService(indexed, vector=np.eye(8, dtype=np.float32)[0])
    with local_service(indexed, IngressConfig(), service=service) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#list > li")).to_have_count(CLIPS)
        page.evaluate(
            """() => {
                const transfer = new DataTransfer();
                transfer.items.add(new File(["x"], "song <b>.mp3"));
                dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
            }"""
        )
        expect(page.locator("#status")).to_have_text("Most similar to the file song <b>.mp3:")
        page.close()


def test_a_key_is_asked_for_once_and_not_put_into_an_address(
    browser: Browser, indexed: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "right-key")
    requested: list[str] = []
    with local_service(indexed, IngressConfig()) as url:
        page = browser.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        expect(page.locator("#key")).to_be_visible()
        for key in ("wrong-key", "right-key"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Continue").click()
            if key == "wrong-key":
                expect(page.locator("#key-problem")).to_have_text("This key is not valid.")
        expect(page.locator("#list > li")).to_have_count(CLIPS)
        expect(page.locator("#legend button")).to_have_count(2)
        page.get_by_role("button", name="Play Björk 3", exact=True).click()
        expect(page.locator("#player-time")).to_contain_text("/ 0:0")
        page.close()
    assert any("signature=" in address for address in requested)
    assert not any("right-key" in address for address in requested)


def test_a_service_that_fails_is_reported_and_tried_again(browser: Browser, indexed: Library) -> None:
    with local_service(indexed, IngressConfig()) as url:
        page = browser.new_page()
        page.route("**/v1/tracks?*", lambda route: route.abort())
        page.goto(url)
        expect(page.locator("#status")).to_contain_text("The service does not answer: is it running?")
        page.unroute("**/v1/tracks?*")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#list > li")).to_have_count(CLIPS)
        page.close()


def add_described(library: Library, folder: Path, **described: Any) -> None:
    """Add twelve tracks with an index, all of them described in the same way."""
    save_run(library, RUN, coefficients=4)
    add_tracks(library, folder, range(12))
    tracks = library.table("tracks")
    rows = [row | described for row in tracks.read().to_pylist()]
    tracks.delete(tracks.files())
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), "1")
    index(library, IndexConfig(links=8))


@pytest.mark.parametrize(
    ("license", "shown"),
    [
        ("https://creativecommons.org/licenses/by-sa/4.0/", "CC BY-SA 4.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0"),
        ("Free for the <b>living</b>", "Free for the <b>living</b>"),
        ("javascript:alert(1)", "javascript:alert(1)"),
    ],
)
def test_a_license_is_shown(
    browser: Browser, cluster: None, tmp_path: Path, library: Library, license: str, shown: str
) -> None:
    add_described(library, tmp_path, license=license)
    with local_service(library, IngressConfig()) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#list .license").first).to_have_text(shown)
        page.get_by_role("button", name="Play Björk 3", exact=True).click()
        expect(page.locator("#player-license")).to_have_text(shown)
        links = page.locator("#list a.license").evaluate_all("links => links.map(link => link.href)")
        assert set(links) == ({license} if license.startswith("http") else set())
        page.close()


def test_without_genres_the_sound_gives_the_colors(
    browser: Browser, cluster: None, tmp_path: Path, library: Library
) -> None:
    add_described(library, tmp_path, genres=[])
    with local_service(library, IngressConfig()) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#color")).to_have_value("tag")
        page.close()


def test_text_of_a_catalogue_is_shown_as_text(
    browser: Browser, cluster: None, tmp_path: Path, library: Library
) -> None:
    title = "<img src=x onerror=document.title='run'>"
    add_described(library, tmp_path, title=title, genres=[title])
    with local_service(library, IngressConfig()) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#list .title").first).to_have_text(title)
        expect(page.locator("#legend button")).to_have_text(f"{title} (12)")
        page.locator("#list .title").first.click()
        expect(page.locator("#seeds")).to_contain_text(title)
        assert page.locator("#results img, #legend img").count() == 0
        assert page.title() == "songray: what sounds like this?"
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible_and_fits_its_screen(
    browser: Browser, indexed: Library, scheme: Literal["light", "dark"], width: int
) -> None:
    with local_service(indexed, IngressConfig()) as url:
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.goto(f"{url}#like=t%3A12&unlike=t%3A5&tray=t%3A1&tray=t%3A3")
        expect(page.locator("#list .similarity").first).to_be_visible()
        expect(page.locator("#tray-list > li")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for opened in ("", "help-button"):
            if opened:
                page.locator(f"#{opened}").click()
            violations = Axe().run(page).response["violations"]
            assert [(rule["id"], rule["impact"]) for rule in violations if rule["impact"] != "minor"] == []
        page.close()
