"""What commands that draw import, and what they leave for later."""

import os
import subprocess
import sys
from pathlib import Path

from talkhead.commands import quick_start

ROOT = Path(__file__).resolve().parents[2]


def test_torch_is_whole_where_a_library_may_need_it(tmp_path):
    (tmp_path / "transformers.py").write_text("")
    code = ("import gc, sys\n"
            "from talkhead.commands.quick_start import LATER, quick_start\n"
            "with quick_start():\n    import torch\n    print(gc.isenabled())\n"
            "print(gc.isenabled(), 'torch._decomp' in sys.modules)\n"
            "print(torch.nn.Linear(3, 2, device='meta')(torch.ones(4, 3, device='meta')).shape)\n"
            "import transformers\n"
            "print('torch._decomp' in sys.modules, type(sys.modules[LATER]).__name__)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, tmp_path)))})
    assert done.stdout.splitlines() == ["False", "True False", "torch.Size([4, 2])", "True module"]


def test_what_was_left_out_is_there_when_it_is_used(monkeypatch):
    monkeypatch.setattr(quick_start, "LATER", "colorsys")
    late = quick_start._Later("colorsys")
    monkeypatch.setitem(sys.modules, "colorsys", late)
    assert not hasattr(late, "__path__") and sys.modules["colorsys"] is late
    assert late.hls_to_rgb(0, 0.5, 0) == (0.5, 0.5, 0.5)
    assert sys.modules["colorsys"] is not late
