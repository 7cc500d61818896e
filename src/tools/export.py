"""export: a fold's network as ONNX, for those who serve it elsewhere.

READS   models/<experiment>/fold<k>/last.pt or best.pt (the weights that predict uses), and some of
        the train images to check the answer with
WRITES  models/<experiment>/fold<k>/model.onnx

Input   images (N,C,S,S) uint8: grey (C = 1) or RGB (C = 3) as prepare stores them, filtered and
        resized to S×S; the normalisation is inside. N is free.
Outputs mask (N,S,S) and label (N,classes) float32, as far as the experiment's task has them:
        probabilities, without test-time augmentation.

The file's metadata_props hold all that one must know to feed it. Nothing is written whose answers
differ from torch's by more than TOLERANCE.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from src.config.load import Config
from src.core.console import InputError, StageError, duration, header, listing, say, short
from src.core.disk import explained, replacing, system_error
from src.core.paths import Paths
from src.data.tables import open_store, read_index
from src.parts import building, models
from src.parts.fitted import FITTED
from src.parts.network import Network
from src.pipeline.jobs import folds as folds_to_use
from src.pipeline.jobs import train_job, weights_used
from src.pipeline.networks import ANSWERS
from src.training.batches import to_tensor
from src.training.checkpoint import load_weights

PACKAGES = ["onnx", "onnxruntime", "onnxscript"]
BATCHES = (1, 3)  # the exported graph must not have the batch size baked in
TOLERANCE = 1e-3


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    if absent := [p for p in PACKAGES if importlib.util.find_spec(p) is None]:
        what = f"export needs packages that are not installed: {listing(absent)}"
        raise InputError(what, "", f"pip install {' '.join(absent)}", code="no_package")
    everything = [(one, k) for one in config.experiments for k in folds_to_use(one, paths)]
    wanted = [(one, k) for one, k in everything if given.fold in (None, k)]
    if not wanted:
        folds = sorted({k for _, k in everything})
        todo = f"The folds are {listing(folds)}" if folds else ""
        raise InputError(f"there is no fold {given.fold}", "--fold", todo, code="no_such_fold")
    for one, k in wanted:
        if (arch := one.experiment.model.arch) in FITTED:
            what = f"{arch} is not trained by gradients and has no ONNX form"
            todo = "Export an experiment with a network"
            raise InputError(what, f"model.arch of {one.name}", todo, code="not_by_gradients")
        train_job(one, paths, k).require("an ONNX file", verify=True)
    targets = [paths.onnx(one.name, k) for one, k in wanted]
    header("export", config.name, [paths.fold(one.name, k) for one, k in wanted], targets)
    for (one, k), target in zip(wanted, targets):
        started, which = time.time(), one.experiment.predict.checkpoint
        facts = {"fold": k, "weights": weights_used(one, paths, k)}
        images = images_of(one, paths)
        with train_job(one, paths, k).lock.held():  # the file is in the fold's folder
            largest = export(one, paths.checkpoint(one.name, k, which), images, target, facts)
        say(
            f"  {short(target)}   {target.stat().st_size / 1e6:.1f} MB, "
            f"{duration(time.time() - started)}; largest difference from torch {largest:.1e} at "
            f"batches of {' and '.join(map(str, BATCHES))}"
        )
    return 0


def images_of(config: Config, paths: Paths) -> np.ndarray:
    """A few of the train images, evenly over all of them."""
    e, count = config.experiment, len(read_index(paths, "train"))
    store = open_store(paths.images(e), count, e.image_size)
    return np.stack([store[r] for r in np.linspace(0, count - 1, max(BATCHES)).astype(int)])


def export(
    config: Config, checkpoint: Path, images: np.ndarray, target: Path, facts: dict
) -> float:
    """Write one network; images (N,S,S) or (N,S,S,3) uint8 prove it. Returns the largest difference
    from torch. Raises StageError where that is too large or the network cannot be written."""
    import onnx

    e = config.experiment
    net = building.build(e, len(config.competition.data.classes), pretrained=False)
    load_weights(checkpoint, net, facts.get("weights", "float32"), facts.get("fold"))
    served, inputs = Served(net).eval(), to_tensor(images)
    with torch.inference_mode():
        answers = dict(zip(served.answers, served(inputs)))
    with replacing(target) as temporary:
        try:
            with _quiet():
                torch.onnx.export(
                    served,
                    (inputs[:2],),
                    temporary,
                    input_names=["images"],
                    output_names=served.answers,
                    dynamo=True,
                    external_data=False,
                    dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                )
        except Exception as error:  # the exporter wraps whatever went wrong in each of its steps
            refused = system_error(error)
            if refused is not None:
                raise explained(refused, target) from error
            why = str(error.__cause__ or error).strip().splitlines()[0]
            what = f"{models.title(e.model)} of {config.name} cannot be written as ONNX: {why}"
            raise StageError(what, code="no_onnx") from error
        written = onnx.load(temporary)
        _strip(written.graph)
        values = (about(config, net) | facts).items()
        properties = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values}
        onnx.helper.set_model_props(written, properties)
        onnx.checker.check_model(written)
        onnx.save(written, temporary)
        largest = max(difference(temporary, inputs.numpy(), answers, n) for n in BATCHES)
        if not largest <= TOLERANCE:
            raise StageError(
                f"ONNX and torch differ by {largest:.1e} for {config.name}, more "
                f"than {TOLERANCE:g}: {short(target)} is not written",
                code="onnx_differs",
            )
    return largest


def about(config: Config, net: Network) -> dict:
    """What a program that serves the network has to know."""
    e, data = config.experiment, config.competition.data
    return {
        "experiment": config.name,
        "classes": data.classes,
        "empty_class": data.empty_class,
        "size": e.image_size,
        "channels": data.channels,
        "resize": e.resize,
        "filter": e.filter,
        "filter_options": e.filter_options,
        "input": "uint8, 0 to 255, filtered at its original size and then resized to size x size; "
        "letterbox: centred on black",
        "mean": [round(float(v) / 255, 6) for v in net.mean.flatten()],
        "std": [round(float(v) / 255, 6) for v in net.std.flatten()],
        "normalisation": "inside: (image / 255 - mean) / std",
        "mask": "probability of lesion, on the resized image",
        "label": "class probabilities in the order of classes",
        "checkpoint": e.predict.checkpoint,
    }


class Served(torch.nn.Module):
    """A network with probabilities in place of logits: images -> the answers that `answers` names,
    in this order."""

    def __init__(self, net: Network):
        super().__init__()
        self.net, self.answers = net, list(ANSWERS[net.task])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.net(images)
        return tuple(
            torch.sigmoid(logits["mask"].float())[:, 0]
            if name == "mask"
            else torch.softmax(logits["label"].float(), 1)
            for name in self.answers
        )


def difference(file: Path, images: np.ndarray, answers: dict, batch: int) -> float:
    """The largest |ONNX − torch| over all images, predicted `batch` at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        file.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    largest = 0.0
    for start in range(0, len(images) - batch + 1, batch):
        part = slice(start, start + batch)
        for answer, wanted in zip(
            session.run(list(answers), {"images": images[part]}), answers.values()
        ):
            largest = np.maximum(largest, np.abs(answer - wanted[part].numpy()).max())
    return float(largest)


def _strip(graph) -> None:
    """Without the exporter's notes on every node: they hold stack traces with this machine's
    paths."""
    holders = (graph.node, graph.value_info, graph.input, graph.output, graph.initializer)
    for holder in [graph, *(h for group in holders for h in group)]:
        del holder.metadata_props[:]
        holder.doc_string = ""


@contextlib.contextmanager
def _quiet():
    """The exporter reports its inner steps on every channel there is."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
