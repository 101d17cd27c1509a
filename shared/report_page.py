"""A self-contained HTML page of tables and pictures, readable without a network."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from shared.files import write_text

JPEG_QUALITY = 88
VERDICTS = ("good", "fair", "weak", "poor")
PAGE_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: {width}px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child {{ text-align: left }} img {{ width: 100% }}
figure {{ margin: 0 0 1.6rem }} figcaption, .heads {{ color: #555 }} figure img {{ display: block }}
video {{ width: 100%; display: block; background: #eee; border-radius: 6px }}
.rows {{ width: 100% }} .rows th, .rows td {{ text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0 }}
.good, .fair, .poor, .weak {{ border-radius: 4px; padding: 0 .4rem }} .good {{ background: #dff3e6; color: #14532d }}
.fair {{ background: #fff0cc; color: #6b4600 }} .poor, .weak {{ background: #fbdfe2; color: #8a1c2c }}
.heads {{ display: flex; font-size: 13px }} .heads span {{ flex: 1; text-align: center }}
</style></head><body><h1>{title}</h1>"""


class ReportPage:
    """Collects parts in the order in which they are added; `write` makes the file. All texts are escaped."""

    def __init__(self, title: str, width: int = 1200) -> None:
        """`width` is the most, in CSS pixels, that the page takes of a window."""
        self._parts = [PAGE_HEAD.format(title=escape(title), width=width)]

    def heading(self, text: str) -> None:
        """A heading over what follows."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, name: str, table: dict[str, dict[str, float]]) -> None:
        """{row: {column: number}} under a heading; numbers with four digits, empty cells where a row lacks a column."""
        columns = list(dict.fromkeys(column for row in table.values() for column in row))
        self.heading(name)
        self._parts.append("<table><tr><th></th>")
        self._parts += [f"<th>{escape(column)}</th>" for column in columns]
        for row, values in table.items():
            cells = "".join(f"<td>{values[c]:.4g}</td>" if c in values else "<td></td>" for c in columns)
            self._parts.append(f"</tr><tr><th>{escape(row)}</th>{cells}")
        self._parts.append("</tr></table>")

    def picture(self, image: np.ndarray) -> None:
        """A uint8 picture (H, W, 3), as wide as the page."""
        self._parts.append(_embedded(image))

    def figure(self, image: np.ndarray, caption: str, heads: Sequence[str] = ()) -> None:
        """A uint8 picture (H, W, 3) with a caption above; `heads` name its columns, which are equally wide."""
        names = "".join(f"<span>{escape(head)}</span>" for head in heads)
        names = f'<div class="heads">{names}</div>' if names else ""
        self._parts.append(f"<figure><figcaption>{escape(caption)}</figcaption>{names}{_embedded(image)}</figure>")

    def rows(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of texts; a cell that is good, fair, weak or poor is coloured."""
        def cell(text: str) -> str:
            return f'<span class="{text}">{text}</span>' if text in VERDICTS else escape(text)

        self._parts.append('<table class="rows"><tr>' + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>")
        self._parts += ["<tr>" + "".join(f"<td>{cell(text)}</td>" for text in row) + "</tr>" for row in rows]
        self._parts.append("</table>")

    def notes(self, texts: Sequence[str], none: str) -> None:
        """A list of sentences, each with a capital and a full stop; the sentence `none` where there is nothing to say."""
        told = [text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "”", "?")) else ".") for text in texts]
        self._parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in told) + "</ul>" if told else
                           f"<p>{escape(none)}</p>")

    def link(self, address: str, text: str) -> None:
        """A paragraph that leads to `address`, relative to the page."""
        self._parts.append(f'<p><a href="{escape(quote(address))}">{escape(text)}</a></p>')

    def video(self, data: bytes, caption: str, heads: Sequence[str] = ()) -> None:
        """The bytes of an MP4 file as a player with a caption below; `heads` name its columns, which are equally wide."""
        names = "".join(f"<span>{escape(head)}</span>" for head in heads)
        self._parts.append(f'<figure><div class="heads">{names}</div><video controls loop preload="auto" '
                           f'src="data:video/mp4;base64,{base64.b64encode(data).decode()}"></video>'
                           f"<figcaption>{escape(caption)}</figcaption></figure>")

    def write(self, path: Path) -> None:
        """Make the file, atomically. Raises TalkheadError where it cannot be written."""
        write_text(path, "".join(self._parts) + "</body></html>\n")


def _embedded(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
