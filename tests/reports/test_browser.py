"""A report reads well in a browser: without network and errors, on a screen and on a phone, in light and dark."""

import pytest

import pipeline
from tests.browser import CHROMIUM, browser
from tests.reports.tables import two_versions


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
def test_a_report_is_legible_on_screens_and_phones_in_light_and_dark(tiny_model, tmp_path):
    spec = two_versions(tmp_path, tiny_model)
    pipeline.report(spec, price_per_hour=2.0).write(tmp_path / "report.html")
    backgrounds = set()
    with browser(tmp_path / "profile") as opened:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                page = opened.look(tmp_path / "report.html", width, scheme)
                assert page.requests == []
                assert page.errors == []
                assert page.width <= width
                assert page.letters >= 9.5
                backgrounds.add(page.background)
    assert len(backgrounds) == 2
