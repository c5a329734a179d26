"""A report reads well in a browser: without network and errors, on a screen and on a phone, in light and dark."""

import pipeline
from tests.browser import browser
from tests.reports.tables import two_versions

LETTERS = """Math.min(...[...document.querySelectorAll("svg")].map(
    svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width * 11.5))"""
"""The size on the screen of the letters of the plots, which are as wide as the window allows."""


def test_a_report_is_legible_on_screens_and_phones_in_light_and_dark(tiny_model, tmp_path):
    spec = two_versions(tmp_path, tiny_model)
    report = tmp_path / "report.html"
    pipeline.report(spec, price_per_hour=2.0).write(report)
    backgrounds = set()
    with browser(tmp_path / "profile") as opened:
        for width in (1280, 390):
            for dark in (False, True):
                page = opened.open(report.as_uri(), width=width, dark=dark)
                assert page.requests == []
                assert page.complaints == []
                assert page.value("document.documentElement.scrollWidth") <= width
                assert page.value(LETTERS) >= 9.5
                backgrounds.add(page.value("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
