"""A person at work: a real browser at the pages of a real Label Studio."""

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.ImageStat import Stat
from playwright.sync_api import Locator, Page, Response, expect, sync_playwright

from connectors.annotation import Asked, Question
from connectors.label_studio.client import LabelStudio
from flows.artefacts import ANSWERS, BATCH, LABELLED, PUSHED
from pipeline.masks import mask_from_png, mask_to_png
from pipeline.types import Ask, AskFor, Region
from tests.system.conftest import words_of

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 90_000
"""Milliseconds until a page that does not do what is expected of it fails the test."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no program `chromium` on this machine")


@pytest.fixture
def page():
    """A page of a browser that nobody is logged in with; open for one test only, as it keeps an event loop running."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def test_person_labels_the_most_wanted_images_and_the_next_round_learns_from_them(make_campaign, page):
    campaign = make_campaign("close_at = 0.75")
    campaign.run()
    campaign.label(17)  # the other five have lower task ids than round 1, and are less wanted
    campaign.run()
    address = campaign.folder.round(1).read(PUSHED).address
    batch = campaign.folder.round(1).read(BATCH).table.set_index("rank")
    tasks = campaign.tasks(1)

    log_in(page, address, campaign.servers)
    check_columns(page)
    with page.expect_response(is_next_task) as served:
        page.get_by_role("button", name="Label All Tasks").click()
    close_instructions(page)
    check_task(page, served.value, tasks, batch.loc[0])

    disagreed = str((int(batch.loc[0, "guess"]) + 1) % 10)
    page.keyboard.press(disagreed)
    expect(ticked(page)).to_have_attribute("name", disagreed)
    with page.expect_response(is_next_task) as served:
        page.get_by_role("button", name="Submit current annotation").click()
    check_task(page, served.value, tasks, batch.loc[1])

    check_that_no_class_cannot_be_submitted(page, key=batch.loc[1, "guess"])
    with page.expect_response(is_next_task) as served:
        page.keyboard.press("Control+Enter")
    check_task(page, served.value, tasks, batch.loc[2])
    check_order_by_uncertainty(page, address, {tasks[row.item_id]: row.uncertainty for row in batch.itertuples()})

    campaign.label()
    campaign.run()
    answers = pd.read_parquet(campaign.folder.round(1).path_of(ANSWERS)).set_index("item_id")
    labelled = words_of(campaign.folder.round(2), LABELLED)
    for rank, label in ((0, disagreed), (1, batch.loc[1, "guess"])):
        item_id = batch.loc[rank, "item_id"]
        assert answers.loc[item_id, "annotator"] == campaign.servers.email
        assert answers.loc[item_id, "seconds"] > 0
        assert labelled[item_id] == label


def test_person_sees_a_picture_that_browsers_do_not_show_by_themselves(make_campaign, page):
    campaign = make_campaign()
    for path in (campaign.file.parent / "images").iterdir():
        with Image.open(path) as picture:
            picture.save(path, format="TIFF")
    campaign.run()
    log_in(page, campaign.folder.round(0).read(PUSHED).address, campaign.servers)
    with page.expect_response(is_next_task) as served:
        page.get_by_role("button", name="Label All Tasks").click()
    close_instructions(page)
    image = page.get_by_alt_text("image", exact=True)
    expect(image).to_have_js_property("naturalWidth", 28)
    item_id = served.value.json()["data"]["item_id"]
    with Image.open(io.BytesIO(content(image))) as seen, Image.open(campaign.uris()[item_id]) as asked_for:
        assert (seen.format, asked_for.format) == ("JPEG", "TIFF")
        assert abs(Stat(seen.convert("L")).mean[0] - Stat(asked_for).mean[0]) < 3


def test_classes_and_images_of_any_name_are_shown_chosen_and_given_back_as_they_are(space, servers, page):
    classes = ["$1", "$5", "{{x}}", "a<b", 'R&D "x"']
    images = [str(space.images_root / f"{label} é#?%20&'.png") for label in classes]
    for image in images:
        pixels = np.random.default_rng(0).integers(0, 256, size=(64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
    tool = LabelStudio(
        url=space.url, token=space.token, project=space.project, classes=classes, images_root=space.images_root
    )
    address = tool.prepare()
    questions = [
        Question(
            Ask(f"item {rank}", 0, "query"),
            image,
            rank,
            (Region("image", guess, score=0.5),),
            f"unsure of {guess} and $1",
        )
        for rank, (image, guess) in enumerate(zip(images, classes, strict=True))
    ]
    task_ids = tool.push(questions, model_version="m", asked={})
    chosen = [*classes[1:], classes[0]]

    log_in(page, address, servers)
    with page.expect_response(is_next_task):
        page.get_by_role("button", name="Label All Tasks").click()
    close_instructions(page)
    options = page.locator(".lsf-choices").get_by_role("radio")
    for rank, (question, label) in enumerate(zip(questions, chosen, strict=True)):
        expect(page.locator(".lsf-current-task__task-id")).to_contain_text(str(task_ids[question.ask]))
        expect(page.get_by_role("heading").filter(has_text=f"Why this image: {question.reason}")).to_be_visible()
        expect(page.get_by_alt_text("image", exact=True)).to_have_js_property("naturalWidth", 64)
        assert page.locator(".lsf-choices label").all_inner_texts() == [f"{c}[{n}]" for n, c in enumerate(classes, 1)]
        expect(options.nth(rank)).to_be_checked()
        if rank % 2:
            page.locator(".lsf-choices label").filter(has_text=label).click()
        else:
            page.keyboard.press(str(classes.index(label) + 1))
        expect(options.nth(classes.index(label))).to_be_checked()
        with page.expect_response(lambda answer: answer.request.method == "POST" and "/annotations" in answer.url):
            page.keyboard.press("Control+Enter")

    answers = tool.pull(task_ids).answers
    given = {answer.item_id: answer.annotation.regions[0].label for answer in answers}
    assert given == {question.item_id: label for question, label in zip(questions, chosen, strict=True)}


def test_pictures_of_a_bucket_are_seen_through_label_studio_and_from_the_store(space, servers, s3_environment, page):
    bucket = f"bucket-{space.project.removeprefix('test ')}"
    names = ("a.png", "b +%20#&.png")
    contents = dict(zip(names, (Path(uri).read_bytes() for uri in space.uris), strict=False))
    s3_environment.put(bucket, contents)
    ask = [Question(Ask(name, 0, "query"), f"s3://{bucket}/{name}", rank) for rank, name in enumerate(names)]
    settings = {"url": space.url, "token": space.token, "project": space.project, "classes": ["cat", "dog"]}
    tool = LabelStudio(**settings)
    address = tool.prepare()
    task_ids = tool.push(ask, model_version="m", asked={})
    log_in(page, address, servers)
    assert "x-amz-request-id" not in opened(page, f"{address}?task={task_ids[ask[0].ask]}")
    image = page.get_by_alt_text("image", exact=True)
    expect(image).to_have_js_property("naturalWidth", 64)
    assert content(image) == contents["a.png"]

    LabelStudio(**settings, presign_minutes=5).tend([Asked(0, ask, "m", task_ids)], asked=task_ids)
    page = page.context.browser.new_page(storage_state=page.context.storage_state())  # the other one keeps pictures
    assert "x-amz-request-id" in opened(page, f"{address}?task={task_ids[ask[1].ask]}")
    image = page.get_by_alt_text("image", exact=True)
    expect(image).to_have_js_property("naturalWidth", 64)
    assert content(image) == contents[names[1]]


def opened(page: Page, address: str) -> dict[str, str]:
    """Open a task; the header of the answer that brought a picture."""
    with page.expect_response(lambda answer: "/resolve/" in answer.url and answer.status == 200) as picture:
        page.goto(address)
    return picture.value.headers


@pytest.fixture
def scene(space, servers, page):
    """Ask for several regions in the same image again and again, and open the first task; return tool and task ids."""

    def ask(n: int, classes: list[str], *guess: Region) -> tuple[LabelStudio, dict[Ask, int]]:
        image = space.images_root / "scene.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(300, 400, 3), dtype=np.uint8)).save(image)
        settings = {"url": space.url, "token": space.token, "project": space.project, "images_root": space.images_root}
        tool = LabelStudio(**settings, classes=classes, asks=AskFor(guess[0].kind, several=True))
        address = tool.prepare()
        questions = [Question(Ask(f"item {rank}", 0, "query"), str(image), rank, guess) for rank in range(n)]
        task_ids = tool.push(questions, model_version="m", asked={})
        log_in(page, address, servers)
        with page.expect_response(is_next_task):
            page.get_by_role("button", name="Label All Tasks").click()
        close_instructions(page)
        check_scene(page, task_ids[questions[0].ask], len(guess))
        return tool, task_ids

    return ask


def test_boxes_are_seen_drawn_and_deleted_and_come_back_within_a_pixel(scene, page):
    kept, wrong = (0.125, 0.1, 0.375, 0.4), (0.6, 0.5, 0.9, 0.9)
    tool, task_ids = scene(3, ["$1", "dog"], Region("box", "$1", kept, 0.75), Region("box", "dog", wrong, 0.5))
    told = [text.replace("\u2060", "").split() for text in regions_of(page).all_inner_texts()]
    assert told == [["1", "$1", "0.75"], ["2", "dog", "0.50"]]
    click_in(page, 0.75, 0.7)
    page.keyboard.press("Backspace")
    expect(regions_of(page)).to_have_count(1)
    drawn = (0.5, 0.25, 0.75, 0.4)
    page.keyboard.press("1")
    drag_in(page, *drawn)
    expect(regions_of(page)).to_have_count(2)
    submit(page)

    check_scene(page, task_ids[Ask("item 1", 0, "query")], 2)
    page.keyboard.press("0")
    expect(page.locator(".lsf-choices").get_by_role("checkbox", checked=True)).to_have_count(1)
    for n_left, place in ((1, (0.25, 0.25)), (0, (0.75, 0.7))):
        click_in(page, *place)
        page.keyboard.press("Backspace")
        expect(regions_of(page)).to_have_count(n_left)
    submit(page)

    check_scene(page, task_ids[Ask("item 2", 0, "query")], 2)
    submit(page)

    answers = {answer.item_id: answer for answer in tool.pull(task_ids).answers}
    first, second = answers["item 0"].annotation.regions
    assert (first.label, second.label, first.geometry) == ("$1", "$1", pytest.approx(kept))
    assert np.abs(np.subtract(second.geometry, drawn) * (400, 300, 400, 300)).max() < 1
    assert answers["item 1"].annotation.regions == ()
    assert [region.score for region in answers["item 2"].annotation.regions] == [None, None]


def test_masks_are_seen_painted_over_and_come_back_of_the_size_of_the_image(scene, page):
    disc = np.hypot(*np.mgrid[-80:220, -100:300]) < 60
    masks = [("cat", mask_to_png(disc)), ("dog", mask_to_png(disc[::-1, ::-1]))]
    tool, task_ids = scene(2, ["cat", "dog"], *(Region("mask", label, mask=mask, score=0.75) for label, mask in masks))
    page.keyboard.press("2")
    drag_in(page, 0.1, 0.8, 0.3, 0.8)
    expect(regions_of(page)).to_have_count(3)
    submit(page)

    check_scene(page, task_ids[Ask("item 1", 0, "query")], 2)
    submit(page)

    answers = {answer.item_id: answer for answer in tool.pull(task_ids).answers}
    *first, painted = answers["item 0"].annotation.regions
    for untouched in (first, answers["item 1"].annotation.regions):
        assert [(region.label, region.mask) for region in untouched] == masks
    stroke = mask_from_png(painted.mask)
    ys, xs = stroke.nonzero()
    assert (painted.label, stroke.shape) == ("dog", (300, 400))
    assert abs((ys.min() + ys.max()) / 2 - 240) < 1.5
    assert abs((xs.min() + xs.max()) / 2 - 80) < 1.5


def test_pages_of_prefect_show_the_round(make_campaign, page):
    campaign = make_campaign()
    campaign.run()
    page.goto(f"{campaign.servers.prefect_ui_url}/v2/login")
    page.locator("input").fill(campaign.servers.prefect_login)
    page.get_by_role("button", name="Login").click()
    page.goto(f"{campaign.servers.prefect_ui_url}/v2/artifacts/key/{campaign.name}-round-0000")
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    expect(page.get_by_role("paragraph").filter(has_text="Asked for 22 labels")).to_be_visible()


def log_in(page: Page, address: str, servers) -> None:
    """Open an address as a person who is not logged in yet."""
    page.goto(address)
    page.locator("input[name=email]").fill(servers.email)
    page.locator("input[name=password]").fill(servers.password)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{address}**")


def check_columns(page: Page) -> None:
    for name in ("reason", "confused_classes", "uncertainty", "novelty"):
        expect(page.locator(f'[data-id="tasks:data.{name}"]')).to_contain_text(name)


def close_instructions(page: Page) -> None:
    title = page.get_by_text("Labeling Instructions")
    expect(title).to_be_visible()
    expect(page.get_by_text("Skip an image that you can")).to_be_visible()
    page.keyboard.press("Escape")
    expect(title).to_be_hidden()


def check_task(page: Page, served: Response, tasks: dict[str, int], wanted: pd.Series) -> None:
    """The task served is the wanted one; its image is there, the guess is ticked, and the reason can be read."""
    assert served.json()["id"] == tasks[wanted["item_id"]]
    expect(page.locator(".lsf-current-task__task-id")).to_contain_text(str(tasks[wanted["item_id"]]))
    image = page.get_by_alt_text("image", exact=True)
    expect(image).to_have_js_property("complete", True)
    expect(image).to_have_js_property("naturalWidth", 28)
    assert content(image) == Path(wanted["uri"]).read_bytes()
    expect(ticked(page)).to_have_attribute("name", wanted["guess"])
    expect(page.get_by_role("heading").filter(has_text=f"Why this image: {wanted['why']}")).to_be_in_viewport()


def check_scene(page: Page, task_id: int, n_regions: int) -> None:
    """The task is there, with its image and its guess."""
    expect(page.locator(".lsf-current-task__task-id")).to_contain_text(str(task_id))
    expect(page.get_by_alt_text("image", exact=True)).to_have_js_property("naturalWidth", 400)
    expect(regions_of(page)).to_have_count(n_regions)


def regions_of(page: Page) -> Locator:
    """The regions of the task, as the panel beside it lists them."""
    return page.locator(".lsf-outliner-item")


def click_in(page: Page, x: float, y: float) -> None:
    """Click at a place of the image, in shares of its width and height."""
    page.mouse.click(*at(page, x, y))


def drag_in(page: Page, left: float, upper: float, right: float, lower: float) -> None:
    """Drag from corner to corner."""
    page.mouse.move(*at(page, left, upper))
    page.mouse.down()
    page.mouse.move(*at(page, right, lower), steps=5)
    page.mouse.up()


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    box = page.get_by_alt_text("image", exact=True).bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def submit(page: Page) -> None:
    with page.expect_response(lambda answer: answer.request.method == "POST" and "/annotations" in answer.url):
        page.keyboard.press("Control+Enter")


def content(image: Locator) -> bytes:
    """What the browser loaded for an image."""
    numbers = image.evaluate("async image => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())]")
    return bytes(numbers)


def ticked(page: Page) -> Locator:
    return page.locator(".lsf-choices").get_by_role("radio", checked=True)


def check_that_no_class_cannot_be_submitted(page: Page, *, key: str) -> None:
    """The key of the class that is ticked takes the tick away; the page then asks for a class."""
    page.keyboard.press(key)
    expect(ticked(page)).to_have_count(0)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("No class is chosen")).to_be_visible()
    page.get_by_role("button", name="OK").click()
    expect(page.get_by_text("No class is chosen")).to_be_hidden()
    page.keyboard.press(key)
    expect(ticked(page)).to_have_attribute("name", key)


def check_order_by_uncertainty(page: Page, address: str, uncertainty: dict[int, float]) -> None:
    """Ordered by a column, the tasks that have a number there come first, by that number."""
    page.goto(address)
    page.get_by_role("button", name="Order by").click()
    with page.expect_response(lambda response: "/api/tasks" in response.url and "ordering" in response.url):
        page.locator(".lsf-menu-dm__item").filter(has_text="uncertainty").click()
    by_uncertainty = sorted(uncertainty, key=uncertainty.__getitem__)
    rows = page.get_by_test_id("table-row").get_by_role("checkbox")
    for place, task_id in enumerate(by_uncertainty):
        expect(rows.nth(place)).to_have_attribute("aria-label", f"Select Task {task_id}")


def is_next_task(response: Response) -> bool:
    """Whether it is the server's answer to the question what to label next."""
    return "id=next_task" in response.url
