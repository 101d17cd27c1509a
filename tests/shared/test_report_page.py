import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from shared.errors import TalkheadError
from shared.report_page import ReportPage


def test_a_page_holds_tables_and_pictures_and_escapes_texts(tmp_path):
    page = ReportPage("a < b", width=900)
    page.table("figures & more", {"one": {"x": 1.23456, "y": 2}, "two": {"y": 1e-5, "<z>": 3}})
    page.text("5 > 4")
    grey = np.full((8, 24, 3), 128, np.uint8)
    page.picture(grey)
    page.figure(grey, "left & right", ["l", "r"])
    page.write(tmp_path / "new" / "page.html")
    html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<title>a &lt; b</title>" in html and "max-width: 900px" in html and "<p>5 &gt; 4</p>" in html
    assert "<h2>figures &amp; more</h2>" in html and "<th>&lt;z&gt;</th>" in html
    assert "<tr><th>one</th><td>1.235</td><td>2</td><td></td>" in html
    assert "<tr><th>two</th><td></td><td>1e-05</td><td>3</td>" in html
    assert "<figcaption>left &amp; right</figcaption>" in html and "<span>l</span><span>r</span>" in html
    pictures = [Image.open(io.BytesIO(base64.b64decode(x))) for x in re.findall(r"data:image/jpeg;base64,([^\"]+)", html)]
    assert [picture.size for picture in pictures] == [(24, 8), (24, 8)]
    assert "http" not in html  # readable without a network


def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TalkheadError, match="cannot create the folder"):
        ReportPage("x").write(tmp_path / "file" / "page.html")
