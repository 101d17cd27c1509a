"""What one frame of a stream costs in stage 1, part by part: a model of random weights, one frame of sound a push, one thread.

    python benchmarks/stage1_streaming.py --dim 384 --layers 3 --heads 6 --size 128 --points 1500 --prior 5500

Medians over the frames, in ms of the thread's CPU time. A frame lasts 40 ms; the goal is a tenth of that.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FEATURE_SIZE, MELS, FeatureStream, silence_row
from stage1_audio2lmk.checkpoint import save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoder, SpeechEncoderConfig, SpeechEncoderStream
from stage1_audio2lmk.kernel import KernelRegressor
from stage1_audio2lmk.model import LandmarkModel, new_model
from stage1_audio2lmk.onnx_export import export_onnx
from stage1_audio2lmk.stream import LandmarkStream, ModelStream, Predictor
from stage1_audio2lmk.transformer import LandmarkTransformer
from stage1_audio2lmk.upper_face import Liveliness


def fill(kernel: KernelRegressor, points: int) -> None:
    """Random support points and weights."""
    config = kernel.config
    kernel.support_mel = torch.empty(points, kernel.similarity.taps, MELS).normal_(-3, 3).half()
    kernel.support_embedding = (torch.randn(points, config.size) / max(1, config.size) ** 0.5).half()
    kernel.weights = 0.1 * torch.randn(config.components, points)


def random_predictor(args: argparse.Namespace) -> Predictor:
    """Encoder, personal kernel, a prior that compares the embedding alone; `--transformer`: of the kept landmark transformer."""
    torch.manual_seed(0)
    encoder = SpeechEncoder(SpeechEncoderConfig(dim=args.dim, layers=args.layers, heads=args.heads, size=args.size))
    encoder = encoder.eval().requires_grad_(False)
    model = new_model(Stage1Config(), 1, args.size)
    fill(model.kernel, args.points)
    prior = None
    if args.prior:
        prior = new_model(Stage1Config(mel_terms=False), 1, args.size)
        fill(prior.kernel, args.prior)
        prior.transformer = None
    whole = LandmarkModel(model.kernel, model.transformer if args.transformer else None, prior, 0.5)
    whole.silence[:FEATURE_SIZE] = torch.from_numpy(silence_row().copy())
    return Predictor(whole.eval().requires_grad_(False), ["one"], torch.device("cpu"), encoder)


def watch(owner: Any, method: str, name: str, spent: dict[str, list[float]]) -> None:
    """Time each call of a method of a class under a name."""
    plain: Callable = getattr(owner, method)

    def timed(*args: Any, **keywords: Any) -> Any:
        start = time.thread_time()
        out = plain(*args, **keywords)
        spent[name].append(time.thread_time() - start)
        return out

    setattr(owner, method, timed)


def time_graph(predictor: Predictor, frames: int) -> None:
    """The same model as an ONNX file: its size, and one row a call in onnxruntime on one thread."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        checkpoint, file = Path(folder) / "model.safetensors", Path(folder) / "model.onnx"
        save_model(checkpoint, predictor.model, predictor.speakers, predictor.encoder)
        said = export_onnx(checkpoint, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        state = {name: np.zeros(shape, np.int32 if name == "count" else np.float32) for name, shape in said["states"].items()}
        rows, times = np.random.default_rng(0).normal(-5, 2, (frames + 50, said["width"])).astype(np.float32), []
        for row in rows:
            start = time.thread_time()
            _, *after = session.run(None, {"rows": row[None], **state})
            times.append(time.thread_time() - start)
            state = dict(zip(state, after))
        print(f"ONNX, {file.stat().st_size / 1e6:.1f} MB, a frame {1000 * np.median(times[50:]):.3f} ms   "
              f"90 %: {1000 * np.quantile(times[50:], 0.9):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("dim", 384), ("layers", 3), ("heads", 6), ("size", 128), ("points", 1500), ("prior", 5500),
                          ("frames", 600)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--transformer", action="store_true", help="with the landmark transformer")
    parser.add_argument("--onnx", action="store_true", help="the exported graph, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    predictor, spent = random_predictor(args), defaultdict[str, list[float]](list)
    for owner, method, name in ((DCBlocker, "pass_through", "DC blocker"), (FeatureStream, "push", "features"),
                                (SpeechEncoderStream, "push", "encoder"), (ModelStream, "push", "model"),
                                (KernelRegressor, "forward", "  kernel and prior"),
                                (LandmarkTransformer, "forward", "  transformer"),
                                (Liveliness, "apply", "upper face"), (LandmarkStream, "push", "all")):
        watch(owner, method, name, spent)
    stream = LandmarkStream(predictor, np.zeros((68, 3), np.float32))
    sound = (0.1 * np.random.default_rng(0).normal(size=(args.frames + 50, 640))).astype(np.float32)
    for number, frame in enumerate(sound):
        if number == 50:
            spent.clear()
        stream.push(frame)
    for name, times in spent.items():
        calls = len(times) // args.frames
        each = np.reshape(times[: calls * args.frames], (args.frames, calls)).sum(1)
        print(f"{name:20s} {1000 * np.median(each):7.3f} ms   90 %: {1000 * np.quantile(each, 0.9):7.3f}")
    print(f"of real time: {np.median(spent['all']) / 0.04:.3f}")
    if args.onnx:
        time_graph(predictor, args.frames)


if __name__ == "__main__":
    main()
