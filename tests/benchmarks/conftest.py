"""Fixtures of the stages whose benchmarks are tested here."""

from tests.stage1_audio2lmk.conftest import make_clip as make_clip
from tests.stage2_gaussian.conftest import short_cartoon as short_cartoon
