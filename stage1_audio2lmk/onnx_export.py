"""The streaming model as an ONNX graph, whose state goes in and comes out: docs/formats.md has the protocol for those who run it.

One call takes n feature rows and gives n rows of displacement, those of the frames `latency` rows earlier. The graph is `Step`,
which does in one function of fixed shapes what `encoders.speech_encoder.SpeechEncoderStream` and `stream.ModelStream` do.
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import MOVING, N_LANDMARKS
from stage1_audio2lmk.audio.features import FEATURE_SIZE, HOPS, MELS, mean_log_mel
from stage1_audio2lmk.checkpoint import load_model
from stage1_audio2lmk.encoders.speech_encoder import LEFT_CONTEXT, SpeechEncoder
from stage1_audio2lmk.kernel import KernelRegressor, PreparedKernel, Sound
from stage1_audio2lmk.model import LandmarkModel
from stage1_audio2lmk.stream import Predictor, speaker_index
from stage1_audio2lmk.transformer import Block, LandmarkTransformer, Transformer

FORMAT = 1  # of the protocol
OPSET = 18
MASKED = -1e30


class State(NamedTuple):
    """One input of the graph and the output that is its next value; all zeros at the start."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Step(nn.Module):
    """rows (n, width) and the states: count, features, embedding, a cache for each transformer -> (n, 68, 3), the next states.

    `count` is how many rows came before, as far as that matters. A row of frame t is given `latency` rows later. States hold
    frames from before the start as if they were silent: the graph puts silence in their place.
    """

    place: Tensor
    quiet: Tensor
    quiet_embedding: Tensor

    def __init__(self, model: LandmarkModel, encoder: SpeechEncoder | None, speaker: int) -> None:
        super().__init__()
        self.model, self.encoder = model, encoder
        self.latency = max(model.ahead, encoder.look_ahead if encoder is not None else 0)
        self.width = FEATURE_SIZE if model.uses_formants else HOPS * MELS
        self.kept = self.latency + max(model.left, LEFT_CONTEXT if encoder is not None else 0)
        self.transformers: list[tuple[str, Transformer]] = [("encoder", encoder.blocks)] if encoder is not None else []
        self.priors: list[LandmarkModel] = []
        name, part, self.speakers = "transformer", model, [speaker]
        while True:
            if part.transformer is not None:
                self.transformers.append((name, part.transformer.blocks))
            if part.prior is None:
                break
            name, part = f"prior_{name}", part.prior
            self.speakers.append(0)
        longest = max([1, *(sizes(blocks).window for _, blocks in self.transformers)])
        self.enough = self.kept + longest  # rows after which all states are full
        self._tables = self._prepared(model)
        place = [MOVING.index(point) if point in MOVING else len(MOVING) for point in range(N_LANDMARKS)]
        self.register_buffer("place", torch.tensor(place))
        for buffer, value in (("quiet", model.silence[: self.width]), ("quiet_embedding", model.silence[FEATURE_SIZE:])):
            self.register_buffer(buffer, value.clone())

    def _prepared(self, model: LandmarkModel) -> list[tuple[PreparedKernel, Tensor]]:
        """By model, its prior's after it: what its kernel prepares, and the projector onto its principal components."""
        below = self._prepared(model.prior) if model.prior is not None else []
        return [(model.kernel.prepare(), model.kernel.projector()), *below]

    def states(self) -> list[State]:
        """In the order that `forward` takes and returns them."""
        found = [State("count", (1,), torch.int32), State("features", (self.kept, self.width), torch.float32)]
        if self.encoder is not None:
            found.append(State("embedding", (self.model.left, self.model.size), torch.float32))
        for name, blocks in self.transformers:
            window, heads, size = sizes(blocks)
            if window > 1:
                found.append(State(f"{name}_cache", (2, len(blocks), heads, window - 1, size), torch.float32))
        return found

    def forward(self, rows: Tensor, states: list[Tensor]) -> tuple[Tensor, ...]:
        """See the class."""
        (count, features, *known), n, left = states, rows.shape[0], self.model.left
        first = count[0] - self.latency  # frame of the first row given
        ago = torch.arange(self.kept, device=rows.device) - self.kept
        before = torch.where((count[0] + ago >= 0)[:, None], features, self.quiet)
        every = torch.cat([before, rows], 0)
        begin = self.kept - self.latency  # place in `every` of the first row given
        after: list[Tensor] = [torch.clamp(count + n, max=self.enough).to(torch.int32), every[n:]]
        caches: list[Tensor] = known[1:] if self.encoder is not None else known
        turn = Caches(caches, first)
        if self.encoder is not None:
            found = self._encode(every[begin - LEFT_CONTEXT : begin + self.encoder.look_ahead + n], turn)
            real = (first + torch.arange(n, device=rows.device) >= 0)[:, None]
            past = (first - left + torch.arange(left, device=rows.device) >= 0)[:, None]
            embedding = torch.cat([torch.where(past, known[0], self.quiet_embedding),
                                   torch.where(real, found, self.quiet_embedding)], 0)
            after.append(embedding[n:])
            embeddings = [F.pad(embedding, (0, 0, 0, self.model.ahead))]
        else:
            embeddings = []
        table = F.pad(every[begin - left : begin + n + self.model.ahead], (0, FEATURE_SIZE - self.width))
        padded = torch.cat([table, *embeddings], 1)[None]
        moved = self._motion(self.model, 0, padded, turn)
        points = torch.cat([moved.unflatten(-1, (len(MOVING), 3)), moved.new_zeros(n, 1, 3)], 1)[:, self.place]
        return points, *after, *turn.after

    def _encode(self, rows: Tensor, turn: "Caches") -> Tensor:
        """Feature rows (LEFT_CONTEXT + n + look_ahead, width) -> embedding (n, size), as `SpeechEncoderStream` gives it."""
        encoder = self.encoder
        assert encoder is not None
        x = (rows[:, : HOPS * MELS].unflatten(-1, (HOPS, MELS)) - encoder.mean) / encoder.scale
        hidden = F.gelu(encoder.stem(x.flatten(-2).T[None])[0].T)
        hidden = self._blocks(encoder.blocks, hidden, turn)
        return (encoder.narrow(encoder.norm(hidden)) - encoder.centre) / (encoder.spread * encoder.size**0.5)

    def _motion(self, model: LandmarkModel, depth: int, padded: Tensor, turn: "Caches") -> Tensor:
        """As `LandmarkModel.motion`: (1, left + n + ahead, FEATURE_SIZE + size) -> (n, 111)."""
        prepared, projector = self._tables[depth]
        out, familiarity = self._regress(model.kernel, model.cut(padded, model.kernel), prepared)
        if model.transformer is not None:
            out = out + self._correct(model.transformer, model.cut(padded, model.transformer), self.speakers[depth], turn)
        if model.prior is not None:
            known = self._motion(model.prior, depth + 1, model.cut(padded, model.prior), turn)
            out = out + model.share_for(familiarity) * (known @ projector)
        return model.uncrossed(out)

    def _regress(self, kernel: KernelRegressor, padded: Tensor, prepared: PreparedKernel) -> tuple[Tensor, Tensor]:
        """As `KernelRegressor.forward`."""
        similarity = kernel.similarity
        rows = padded[0]
        n = rows.shape[0] - similarity.left - similarity.ahead
        if similarity.taps:
            mel = mean_log_mel(rows)
            windows = torch.stack([mel[tap : tap + n] for tap in range(similarity.taps)], 1)
        else:
            windows = rows.new_zeros(n, 0, MELS)
        sound = Sound(windows, rows[similarity.left : similarity.left + n, FEATURE_SIZE:])
        return kernel.displacement(similarity.weighted(sound, *prepared))

    def _correct(self, transformer: LandmarkTransformer, padded: Tensor, speaker: int, turn: "Caches") -> Tensor:
        """As `LandmarkTransformer.forward`."""
        hidden = F.gelu(transformer.stem(transformer.inputs(padded).transpose(1, 2))[0].T) + transformer.speaker.weight[speaker]
        return transformer.head(transformer.norm(self._blocks(transformer.blocks, hidden, turn))) @ transformer.basis

    def _blocks(self, blocks: Transformer, x: Tensor, turn: "Caches") -> Tensor:
        """As `Transformer.forward` with a cache of full size, of which frames before the start are masked."""
        if not len(blocks):
            return x
        (window, heads, size), n = sizes(blocks), x.shape[0]
        cache = turn.take() if window > 1 else x.new_zeros(2, len(blocks), heads, 0, size)
        place = torch.arange(window - 1 + n, device=x.device)
        distance = place[window - 1 :, None] - place
        real = turn.first - (window - 1) + place >= 0
        mask = (distance >= 0) & (distance < window) & (real | (distance == 0))
        half = size // 2
        frequency = 10000 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = place[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        keys, values = [], []
        for k, block in enumerate(blocks):
            assert isinstance(block, Block)
            q, fresh, value = block.qkv(block.norm_attention(x)).unflatten(-1, (3, block.heads, -1)).permute(1, 2, 0, 3)
            key, value = torch.cat([cache[0, k], fresh], 1), torch.cat([cache[1, k], value], 1)
            keys.append(key[:, n:])
            values.append(value[:, n:])
            scores = turned(q, cos[window - 1 :], sin[window - 1 :]) @ turned(key, cos, sin).transpose(1, 2)
            weights = torch.where(mask, scores * size**-0.5, MASKED).softmax(-1)
            x = x + block.out((weights @ value).transpose(0, 1).flatten(1))
            x = x + block.feed(block.norm_feed(x))
        if window > 1:
            turn.after.append(torch.stack([torch.stack(keys), torch.stack(values)]))
        return x


class Caches:
    """The caches in their order, for the transformers in theirs, and the next ones; `first`: frame of the first row given."""

    def __init__(self, caches: list[Tensor], first: Tensor) -> None:
        self.caches, self.first, self.after = list(caches), first, list[Tensor]()

    def take(self) -> Tensor:
        return self.caches.pop(0)


class Sizes(NamedTuple):
    """Of a transformer's attention."""

    window: int
    heads: int
    size: int  # of a head


def sizes(blocks: Transformer) -> Sizes:
    """Those of the first block, which all share; a window of one where there is none."""
    if not len(blocks):
        return Sizes(1, 1, 0)
    block = blocks[0]
    assert isinstance(block, Block)
    return Sizes(block.window, block.heads, block.out.in_features // block.heads)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`transformer.rotate` by the angles (T, D / 2) of x's rows (heads, T, D)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def make_step(predictor: Predictor) -> Step:
    """The graph's module. Raises TalkheadError for an encoder that is not the built-in one."""
    encoder = predictor.encoder
    if encoder is not None and not isinstance(encoder, SpeechEncoder):
        name = encoder.info().get("name", "of another kind")
        raise TalkheadError(f"its speech encoder, {name}, is no part of the model and cannot go into the ONNX file; export a "
                            "model with the built-in encoder or with none")
    with torch.no_grad():
        return Step(predictor.model, encoder, speaker_index(predictor, None)).eval()


def description(step: Step) -> dict[str, Any]:
    """What the file says of itself."""
    quiet = step.quiet.tolist()
    return {"format": FORMAT, "kind": "stage1 stream", "latency": step.latency, "width": step.width,
            "silence": {"log_mel": quiet[0], "formants": quiet[HOPS * MELS :]},
            "states": {state.name: list(state.shape) for state in step.states()}}


def export_onnx(checkpoint: Path, output: Path) -> dict[str, Any]:
    """Write the streaming model of a stage-1 checkpoint as ONNX -> what the file says of itself. Raises TalkheadError."""
    loaded = load_model(checkpoint, "cpu")
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise TalkheadError("the export needs onnx and onnxscript: pip install 'talkhead[onnx]'") from error
    try:
        step = make_step(Predictor(loaded.model, loaded.speakers, torch.device("cpu"), loaded.encoder))
    except TalkheadError as error:
        raise TalkheadError(f"{checkpoint}: {error}") from error
    said = description(step)
    with torch.no_grad():
        made = _graph(step)
    for name, value in (("talkhead", json.dumps(said)), ("license", "that of the model")):
        made.metadata_props.add(key=name, value=value)
    _halve(made)
    onnx.checker.check_model(made)
    with atomic_path(output) as temporary:
        temporary.write_bytes(made.SerializeToString())
    return said


def _graph(step: Step) -> Any:
    """The module as an `onnx.ModelProto`."""
    states = step.states()
    names = [state.name for state in states]
    values = [torch.zeros(state.shape, dtype=state.dtype) for state in states]
    several = torch.export.Dim("n", min=1, max=250)
    shapes = {0: several}, [None for _ in values]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(step, (torch.zeros(3, step.width), values), dynamo=True, opset_version=OPSET,
                                        verbose=False, input_names=["rows", *names], dynamic_shapes=shapes,
                                        output_names=["displacement", *(f"next_{name}" for name in names)])
    finally:
        logger.setLevel(level)
    assert program is not None
    made = program.model_proto
    found = made.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if found and dim.dim_param == found:
                dim.dim_param = "n"
    return made


def _halve(made: Any) -> None:
    """Keep weights that are halves in the checkpoint as halves: the runtime widens them when it loads the file, exactly."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in made.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if values.size > 64 and np.array_equal(halves.astype(np.float32), values):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        made.graph.node.insert(0, node)
