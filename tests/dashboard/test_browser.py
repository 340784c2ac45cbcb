"""The dashboard's pages in a real Chromium."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna_dashboard import save_note
from reporting import make_objective

from optuna_s2e import S2ESampler, ScheduleSpace, open_storage
from optuna_s2e.dashboard import DashboardReporter, serve
from optuna_s2e.dashboard import _reporter as reporter_module

pytestmark = pytest.mark.browser

PLOTS = ["s2e_1_schedules", "s2e_2_theta", "s2e_3_generations", "s2e_4_curves"]
HOSTILE = "x`y|z<img src=http://evil.example/i.png onerror=alert(1)> [l](http://evil.example) ***"
SECONDS = 60_000  # of patience, in Playwright's milliseconds; the machine may be busy


class Search:
    """A search with its pages."""

    def __init__(self, folder: Path, name: str = "s", kind: str = "eq1") -> None:
        self.folder, self.pictures = folder, folder / "pictures"
        self.reporter = DashboardReporter(self.pictures)
        self.objective = make_objective(self.reporter, kind=kind)
        self.study = optuna.create_study(
            study_name=name,
            storage=open_storage(f"sqlite:///{folder}/s2e.db"),
            sampler=S2ESampler(population_size=4, seed=0),
        )
        self.go_on(8)

    def go_on(self, n_trials: int) -> None:
        self.study.optimize(self.objective, n_trials=n_trials, callbacks=[self.reporter])


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    return Search(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def hostile(search: Search) -> Search:
    """A search of Table 1, in the same database, whose strings would like to do something."""
    hostile = Search(search.folder, HOSTILE, kind="table1")
    hostile.study.set_user_attr("s2e:command", f"```\n{HOSTILE}")
    save_note(hostile.study, "<script>alert(2)</script>\n\nMy text.")
    hostile.go_on(1)
    hostile.reporter.paint(hostile.study)
    return hostile


@pytest.fixture(scope="module")
def base(search: Search) -> Iterator[str]:
    with serve(search.study, search.pictures) as address:
        yield address


# as a link of the page does; what is shown then begins to count its ten seconds
FOLLOW_LINK = """url => {
    history.pushState({}, "", url);
    dispatchEvent(new PopStateEvent("popstate", {state: {}}));
    return new Promise(shown => setTimeout(shown, 50));
}"""


class Browser:
    """One page: what it has loaded from a server once, it shows again without loading."""

    def __init__(self, context: Any) -> None:
        self._errors: list[str] = []
        self._server = ""
        self.page = context.new_page()
        self.page.set_default_timeout(SECONDS)
        self.page.on("pageerror", lambda error: self._errors.append(str(error)))
        self.page.clock.install()  # so that a test can let the page's time pass

    def renew(self) -> None:
        """Let pass the ten seconds after which the page renews itself."""
        self.page.clock.fast_forward(10_000)

    @contextmanager
    def at(self, base: str, path: str) -> Iterator[Any]:
        """Show a path of the dashboard; fail if the page raises an error."""
        self._errors.clear()
        if base == self._server:
            with self.page.expect_response(re.compile(r"/api/studies/\d+\?")):
                self.page.evaluate(FOLLOW_LINK, base + path)
                self.renew()
        else:
            self.page.goto(base + path, timeout=SECONDS)
            self._server = base
        yield self.page
        assert self._errors == []


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Iterator[Browser]:
    context = chromium.new_context(viewport={"width": 1024, "height": 1000})
    yield Browser(context)
    context.close()


def plot(page: Any, name: str) -> Any:
    found = page.locator(f"[id='user-defined-plot:{name}']")
    found.locator(".main-svg").first.wait_for()
    return found


def luminance(color: str) -> float:
    """Return the relative luminance of "rgb(r, g, b)", as WCAG defines it."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


WCAG_AA = 4.5  # contrast of texts of any size


def contrast(text: Any, style: str, first: str = "") -> float:
    """Return WCAG's contrast of an element's colour and what is behind it."""
    text.evaluate(f"e => {{ {first} }}")
    own = luminance(text.evaluate(f"e => {RGB}(getComputedStyle(e).{style})"))
    under = luminance(text.evaluate(f"e => {RGB}({BACKGROUND}(e))"))
    bright, dim = sorted([own, under], reverse=True)
    return (bright + 0.05) / (dim + 0.05)


RGB = """(color => {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return `rgb(${[...context.getImageData(0, 0, 1, 1).data].slice(0, 3)})`;
})"""
IS = {"light": "=== 'rgb(255, 255, 255)'", "dark": "!== 'rgb(255, 255, 255)'"}
BACKGROUND = """(element => {
    for (let e = element; e; e = e.parentElement) {
        const color = getComputedStyle(e).backgroundColor;
        if (!/rgba\\(.*, 0\\)|transparent/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
})"""


def test_the_plots_are_drawn_and_legible(browser: Browser, search: Search, base: str) -> None:
    with browser.at(base, "/studies/1") as page:
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(f"({BACKGROUND})(document.body) {IS[scheme]}")
            for name in PLOTS:
                check_plot(plot(page, name), scheme)


def check_plot(drawn: Any, scheme: str) -> None:
    assert drawn.locator(".scatterlayer .trace").count() >= 2
    assert (luminance(drawn.evaluate(BACKGROUND)) > 0.5) == (scheme == "light")
    assert contrast(drawn.locator(".gtitle").first, "fill") > WCAG_AA
    box, title = drawn.bounding_box(), drawn.locator(".gtitle").first.bounding_box()
    legend = drawn.locator(".legend").first
    if legend.count():  # nothing is cut off, nothing lies over the title
        low = legend.bounding_box()
        assert low["y"] > title["y"] + title["height"]
        assert low["y"] + low["height"] <= box["y"] + box["height"] + 1
        assert low["x"] + low["width"] <= box["x"] + box["width"] + 1


OVERLAPS = """element => {
    const box = e => e.getBoundingClientRect();
    const areas = [...element.querySelectorAll(".nsewdrag")].map(box);
    return [...element.querySelectorAll("[class*=axislayer] text, .gtitle, .gtitle-subtitle")]
        .filter(text => areas.some(a => {
            const b = box(text);
            return b.left < a.right - 1 && b.right > a.left + 1
                && b.top < a.bottom - 1 && b.bottom > a.top + 1;
        }) || box(text).right > box(element).right || box(text).left < box(element).left)
        .map(text => text.textContent);
}"""


def test_no_text_lies_over_a_plot_or_is_cut_off_on_a_narrow_page(
    browser: Browser, hostile: Search, base: str
) -> None:
    with browser.at(base, f"/studies/{hostile.study._study_id}") as page:
        drawn = plot(page, "s2e_2_theta")
        assert (
            drawn.locator("[class*=yaxislayer] text").count() > 16
        )  # every number has its row and its label
        assert drawn.locator(".gtitle-subtitle").count() == 1
        for name in PLOTS:
            assert plot(page, name).evaluate(OVERLAPS) == []


def test_strings_of_the_database_do_nothing(browser: Browser, hostile: Search, base: str) -> None:
    asked: list[str] = []
    browser.page.on("dialog", lambda dialog: asked.append(dialog.message))
    browser.page.on(
        "request", lambda request: asked.append(request.url) if "evil" in request.url else None
    )
    own = f"/studies/{hostile.study._study_id}"
    for path, shown in ((f"{own}/note", "My text."), (own, "Best Trial")):
        with browser.at(base, path) as page:
            page.get_by_text(shown).first.wait_for()
            page.clock.run_for(1000)
            page.wait_for_load_state("networkidle")
            assert page.locator("a[href*=evil], img[src*=evil], svg a").count() == 0
    assert asked == []


def test_links_and_pictures_are_legible(browser: Browser, search: Search, base: str) -> None:
    with browser.at(base, "/studies/1/note") as page:
        page.wait_for_function("document.images.length > 0 && document.images[0].naturalWidth > 0")
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(f"({BACKGROUND})(document.body) {IS[scheme]}")
            link = page.get_by_role("link", name="Plots", exact=True)
            assert contrast(link, "color") > WCAG_AA
            image = page.locator("img[src^='/artifacts/']").first
            svg = image.evaluate("e => fetch(e.src).then(r => r.text())")
            grey = re.search(r'<svg[^>]* fill="(#\w+)"', svg)[1]  # type: ignore[index]
            assert contrast(image, "outlineColor", f"e.style.outlineColor = '{grey}'") > WCAG_AA


def test_an_open_page_follows_the_search_and_keeps_its_zoom(
    browser: Browser, search: Search, base: str
) -> None:
    n_shown = "document.getElementById('user-defined-plot:s2e_3_generations').data[0].x.length"
    axis = "document.getElementById('user-defined-plot:s2e_3_generations')._fullLayout.xaxis.range"
    with browser.at(base, "/studies/1") as page:
        area = plot(page, "s2e_3_generations").locator(".nsewdrag").first
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        page.mouse.move(box["x"] + 60, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 150, steps=4)
        page.mouse.up()
        full = page.evaluate(axis)
        page.wait_for_function(f"JSON.stringify({axis}) !== '{json.dumps(full)}'")
        zoomed, before = page.evaluate(axis), page.evaluate(n_shown)
        search.go_on(4)
        browser.renew()
        page.wait_for_function(f"{n_shown} > {before}")
        page.clock.run_for(500)
        assert page.evaluate(n_shown) == before + 4
        assert page.evaluate(axis) == pytest.approx(zoomed)


def test_the_gallery_is_a_wall_of_pictures(browser: Browser, search: Search, base: str) -> None:
    with browser.at(base, "/studies/1/smartSelection") as page:
        page.get_by_text("Show Artifacts").click()
        n = len(search.study.trials)
        loaded = (
            "[...document.images].filter(i => i.src.includes('/artifacts/') && i.complete "
            "&& i.naturalWidth === 400).length"
        )
        page.wait_for_function(f"{loaded} === {n}")


def test_the_status_page_leads_to_the_trials(browser: Browser, search: Search, base: str) -> None:
    with browser.at(base, "/studies/1/note") as page:
        page.get_by_text("Generation", exact=False).first.wait_for()
        page.wait_for_function("document.images.length > 0 && document.images[0].naturalWidth > 0")
        assert page.get_by_text("s2e-begin").count() == 0  # the marks are invisible
        best = search.study.best_trial.number
        page.get_by_role("link", name=f"#{best}", exact=True).first.click()
        page.wait_for_url(re.compile(rf"/dashboard/studies/1/trials\?numbers={best}$"))
        page.get_by_text(f"Trial {best} (trial_id=").wait_for()


def test_the_picture_of_a_running_trial_changes_on_the_open_page(
    browser: Browser, search: Search, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_module, "LIVE_INTERVAL", 0.0)  # no waiting between two updates
    monkeypatch.setattr(reporter_module, "LIVE_SHARE", 1e9)
    trial = search.study.ask()
    schedule = ScheduleSpace(8).suggest(trial)
    errors = [0.5]
    search.reporter.show(trial, schedule, {})
    search.reporter.show(trial, schedule, {"error": errors})
    path = f"/artifacts/1/{trial._trial_id}/"
    source = (
        f"[...document.images].map(i => i.src).find(s => s.includes('{path}') && /v=/.test(s))"
    )
    with browser.at(base, f"/studies/1/trials?numbers={trial.number}") as page:
        browser.renew()
        page.get_by_text("epoch 1 of 8").wait_for()
        page.wait_for_function(source)
        first = page.evaluate(source)
        errors.append(0.25)
        search.reporter.show(trial, schedule, {"error": errors})
        browser.renew()
        page.wait_for_function(f"{source} !== '{first}'")
        page.wait_for_function(
            f"[...document.images].some(i => i.src === {source} && i.naturalWidth === 400)"
        )
        second = page.evaluate(f"fetch({source}).then(r => r.text())")
        assert ">2/8<" in second
        page.get_by_text("epoch 2 of 8").wait_for()
    search.study.tell(trial, 0.25)


def test_a_study_of_5000_trials_is_shown(browser: Browser) -> None:
    """Its page takes about as long as that of a short study; a line per trial would freeze it."""
    study = optuna.create_study()
    x = {"x": optuna.distributions.FloatDistribution(0, 1)}
    values = [k / 5000 for k in range(5000)]
    study.add_trials([
        optuna.create_trial(
            params={"x": v}, distributions=x, value=v, intermediate_values={0: 1.0, 1: v}
        )
        for v in values
    ])  # fmt: skip
    with serve(study) as base, browser.at(base, f"/studies/{study._study_id}") as page:
        page.get_by_text("Study User Attributes").wait_for()
        page.wait_for_function("document.querySelectorAll('#plot-history .main-svg').length > 0")
        assert page.get_by_text("Intermediate values").count() == 0
