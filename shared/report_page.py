"""A self-contained HTML page of tables and pictures, readable without a network."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from shared.files import write_text

JPEG_QUALITY = 88
PAGE_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: {width}px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child {{ text-align: left }} img {{ width: 100% }}
figure {{ margin: 0 0 1.6rem }} figcaption, .heads {{ color: #555 }} figure img {{ display: block }}
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

    def write(self, path: Path) -> None:
        """Make the file, atomically. Raises TalkheadError where it cannot be written."""
        write_text(path, "".join(self._parts) + "</body></html>\n")


def _embedded(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
