"""High dynamic range and wide colour gamuts -> the BT.709 colours that everything else works in.

The transfer curves and HLG's system gamma are those of ITU-R BT.2100, the primaries those of BT.2020, BT.709 and SMPTE EG 432-1,
SDR's display curve that of BT.1886, diffuse white 203 cd/m² as in BT.2408. Brightness is mapped by the photographic operator
of Reinhard et al. 2002 with its burn-out point, on the brightest channel so that hues stay; its two numbers come from the
whole file, so that a face does not change its brightness in time.
"""

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat

from shared.errors import TalkheadError

PQ, HLG = 16, 18  # FFmpeg's numbers of the transfer curves
BT2020, DISPLAY_P3 = 9, 12  # and of the primaries
UNSPECIFIED = 2
CURVES = {PQ: "HDR (PQ)", HLG: "HDR (HLG)"}
GAMUTS = {BT2020: "BT.2020", DISPLAY_P3: "Display P3"}
SDR_GAMMA = 2.4
DIFFUSE_WHITE = 203.0  # cd/m²
LEAST_WHITE = 100.0  # cd/m² that a dark recording's peak counts as, at least
HLG_PEAK = 1000.0  # cd/m² of the display that HLG's system gamma of 1.2 belongs to
MIDDLE_GREY = 26 / 203  # of diffuse white: what BT.2408 has for the 18 % grey card
GRID = 33  # nodes of the table along each colour
# linear light of the wide primaries -> of BT.709's
TO_BT709 = {
    BT2020: np.array([[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]),
    DISPLAY_P3: np.array([[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]),
}
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of BT.709's linear light

Kind = tuple[int, int]  # transfer curve and primaries


def kind(frame: av.VideoFrame) -> Kind | None:
    """The transfer curve and the primaries of a frame that has to be converted, None for one of standard range and gamut."""
    primaries = frame.color_primaries
    if frame.color_trc in CURVES:
        return frame.color_trc, BT2020 if primaries in (BT2020, UNSPECIFIED) else primaries
    return (0, primaries) if primaries in GAMUTS else None


def note(found: Kind) -> str:
    """The sentence about a conversion."""
    name = CURVES.get(found[0]) or f"in {GAMUTS[found[1]]} colours"
    return f"the video is {name} and was converted to standard colours (BT.709); film in standard dynamic range if you can"


def light(signal: np.ndarray, found: Kind) -> np.ndarray:
    """R'G'B' (..., 3) in 0 … 1 -> linear light of BT.709's primaries: cd/m² for HDR, white = 1 for SDR."""
    curve, primaries = found
    if curve == PQ:
        power = np.maximum(signal, 0) ** (1 / 78.84375)
        linear = 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    elif curve == HLG:
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        linear = HLG_PEAK * scene * (scene @ np.array([0.2627, 0.6780, 0.0593]))[..., None] ** 0.2
    else:
        linear = signal**SDR_GAMMA
    matrix = TO_BT709.get(primaries)
    return linear if matrix is None else np.maximum(linear @ matrix.T, 0)


def exposure(pictures: Sequence[np.ndarray], found: Kind) -> tuple[float, float]:
    """White and peak in cd/m² of pictures (..., 3) of R'G'B' in 0 … 1; both 1 for SDR.

    White is what brings the average luminance to middle grey, between the diffuse white of BT.2408 and the peak.
    """
    if found[0] not in CURVES:
        return 1.0, 1.0
    linear = np.concatenate([light(picture, found).reshape(-1, 3) for picture in pictures])
    peak = max(LEAST_WHITE, float(np.percentile(linear.max(1), 99.9)))
    average = float(np.exp(np.log(linear @ LUMINANCE + 0.1).mean()))
    return float(np.clip(average / MIDDLE_GREY, min(DIFFUSE_WHITE, peak), peak)), peak


def standard(signal: np.ndarray, found: Kind, white: float, peak: float) -> np.ndarray:
    """R'G'B' (..., 3) in 0 … 1 of a wide kind -> R'G'B' (..., 3) of BT.709 in 0 … 1."""
    linear = light(signal, found) / white
    brightest = linear.max(-1, keepdims=True)
    mapped = (1 + brightest * (white / peak) ** 2) / (1 + brightest)
    if found[0] not in CURVES:
        mapped = np.ones_like(brightest)
    return np.clip(linear * mapped, 0, 1) ** (1 / SDR_GAMMA)


class ToneMapper:
    """Converts frames of one kind and one size through a table of colours, which FFmpeg looks up fast."""

    def __init__(self, found: Kind, white: float, peak: float) -> None:
        self.found, self._white, self._peak = found, white, peak
        self._graph: Graph | None = None
        self._size: tuple[int, int] | None = None

    def convert(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Frame in rgb48le, R'G'B' of the wide kind -> the same in BT.709."""
        if self._graph is None or self._size != (frame.width, frame.height):
            self._graph, self._size = self._open(frame), (frame.width, frame.height)
        frame.pts = None
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _open(self, frame: av.VideoFrame) -> Graph:
        node = np.linspace(0, 1, GRID)
        blue, green, red = np.meshgrid(node, node, node, indexing="ij")  # red runs fastest
        table = standard(np.stack([red, green, blue], -1).reshape(-1, 3), self.found, self._white, self._peak)
        graph = Graph()
        try:
            with tempfile.TemporaryDirectory(prefix="talkhead-") as folder:
                cube = Path(folder) / "table.cube"
                np.savetxt(cube, table, "%.6f", header=f"LUT_3D_SIZE {GRID}", comments="")
                source = graph.add_buffer(width=frame.width, height=frame.height, format=VideoFormat("rgb48le"),
                                          time_base=Fraction(1, 1000))
                graph.link_nodes(source, graph.add("lut3d", file=str(cube), interp="tetrahedral"),
                                 graph.add("buffersink"))
                graph.configure()
        except OSError as error:
            raise TalkheadError(f"a temporary file for converting colours cannot be written: {error.strerror}; set TMPDIR to a "
                                "folder that can") from error
        return graph
