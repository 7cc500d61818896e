"""Networks that learn without gradients, or not at all: baselines with one answer each, so their
experiments say task: class or task: mask.

To add one: a line in FITTED, a callable like those in MODELS (models.py), whose network has
`fit(batches)`. train calls that once on the fold's images instead of running epochs. `batches`
yields (normalised images (B,3,H,W) float, labels (B) int, groups of near-duplicates (B) int). What
is learned belongs in registered buffers: predict reads a state_dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from src.core.console import InputError
from src.core.settings import Model
from src.data.images import scaled

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]


class Svm(nn.Module):
    """A linear support vector machine on the deepest features, averaged over the image, of an
    encoder that is left as it was pre-trained. Labels only.

    One machine per class against the rest, its distance d turned into a probability
    1 / (1 + exp(a·d + b)) (Platt 1999, fitted by sklearn's CalibratedClassifierCV on distances
    cross-validated with near-duplicates together), normalised over the classes.
    model.options: {C: 1.0e-4}, the weight of errors against the margin: small, since there are more
    features than images.
    """

    takes_encoder = True

    def __init__(self, settings: Model, classes: int, weights: str | None = None):
        super().__init__()
        from segmentation_models_pytorch.encoders import get_encoder

        if unknown := settings.options.keys() - {"C"}:
            raise ValueError(f"svm has no option '{sorted(unknown)[0]}', only C")
        self.error_weight = float(settings.options.get("C", 1e-4))
        encoder = get_encoder(settings.encoder, in_channels=3, depth=5, weights=weights)
        self.encoder = encoder.eval().requires_grad_(False)
        channels = encoder.out_channels[-1]
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("coef", torch.zeros(classes, channels))
        for name in ("intercept", "a", "b"):
            self.register_buffer(name, torch.zeros(classes))

    def train(self, mode: bool = True) -> Svm:
        super().train(mode)
        self.encoder.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,D), always in float32, so that fitting and predicting see the same."""
        with torch.autocast(images.device.type, enabled=False):
            return self.encoder(images.float())[-1].mean((2, 3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            distance = (features - self.shift) / self.scale @ self.coef.T + self.intercept
            p = torch.sigmoid(-(self.a * distance + self.b))
            return {"label": (p / p.sum(1, keepdim=True)).clamp(min=1e-12).log()}

    @torch.no_grad()
    def fit(self, batches: Batches) -> None:
        """Raises InputError where the images are too few to calibrate on."""
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.model_selection import StratifiedGroupKFold
        from sklearn.svm import LinearSVC

        seen = [(self.features(x).cpu().numpy(), y.numpy(), g.numpy()) for x, y, g in batches]
        features, labels, groups = map(np.concatenate, zip(*seen))
        present = np.unique(labels)
        folds = min(5, *(len(np.unique(groups[labels == c])) for c in present))
        if len(present) < 2 or folds < 2:
            raise InputError(
                "svm needs two classes, and two different images of each, to train on",
                "model.arch",
                "Use fewer folds, or another model",
                code="too_few_images",
            )
        shift, scale = features.mean(0), features.std(0)
        scale[scale == 0] = 1
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
        splits = list(splitter.split(features, labels, groups))
        machine = LinearSVC(
            C=self.error_weight, class_weight="balanced", random_state=0, max_iter=20_000
        )
        calibrated = CalibratedClassifierCV(machine, method="sigmoid", cv=splits, ensemble=False)
        fitted = calibrated.fit((features - shift) / scale, labels).calibrated_classifiers_[0]
        of_class = {
            "coef": fitted.estimator.coef_,
            "intercept": fitted.estimator.intercept_,
            "a": np.array([sigmoid.a_ for sigmoid in fitted.calibrators]),
            "b": np.array([sigmoid.b_ for sigmoid in fitted.calibrators]),
        }
        if len(present) == 2:
            # one machine for both: 1 − p of the second class is p of the first
            for name, v in of_class.items():
                of_class[name] = np.concatenate([-v if name in ("a", "b") else v, v])
        self.shift.copy_(torch.as_tensor(shift))
        self.scale.copy_(torch.as_tensor(scale))
        self.b.fill_(100.0)  # of a class without training images: a probability of 0
        for name, values in of_class.items():
            buffer = getattr(self, name)
            buffer[fitted.classes] = torch.as_tensor(values, dtype=torch.float32).to(buffer.device)


# ------------------------------------------------------------------------ masks without learning
# image (H,W) uint8 -> mask (H,W) bool. The lesion is assumed to be the darkest place near the
# middle of the upper half, and one is always found, in a normal breast too: empty_above and the
# class must decide. Lengths are shares of the larger side; all constants were tuned by hand on 100
# lesions of BUSI.

BLUR = 0.02  # σ against speckle
SURROUNDINGS = 0.2  # σ of the brightness that a pixel is compared with
# where lesions lie: mean and σ, shares of height and width
CENTRE, SPREAD = (0.35, 0.5), (0.2, 0.25)
WORKING = 224  # pixels of the larger side
OPENING = 0.03  # what is narrower is not a lesion but a bridge


def darkness(image: np.ndarray) -> np.ndarray:
    """(H,W) uint8, 0…255: how dark against the surroundings, times a Gaussian of the place (as
    Horsch et al., Med. Phys. 28(8), 2001). All 0 for a constant image."""
    grey = image.astype(np.float32)
    # 8 grey levels: black around the picture is not a lesion
    relative = _blurred(grey, BLUR) / (_blurred(grey, SURROUNDINGS) + 8)
    y, x = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in image.shape)
    off_y, off_x = (y[:, None] - CENTRE[0]) / SPREAD[0], (x[None] - CENTRE[1]) / SPREAD[1]
    dark = (relative.max() - relative) * np.exp(-(off_y**2 + off_x**2) / 2)
    if dark.max() < 1e-4:
        return np.zeros(image.shape, np.uint8)
    return (dark * (255 / dark.max())).round().astype(np.uint8)


def otsu(image: np.ndarray) -> np.ndarray:
    """The threshold that separates two classes of darkness best (Otsu, IEEE SMC 9(1), 1979), among
    pixels of at least a fifth of the greatest."""
    dark = darkness(image)
    if not dark.any():
        return dark > 0
    threshold, _ = cv2.threshold(dark[dark > 51].reshape(1, -1), 0, 255, cv2.THRESH_OTSU)
    return _around(dark > threshold, _darkest(dark))


def kmeans(image: np.ndarray) -> np.ndarray:
    """The darkest of three clusters of darkness (Lloyd, IEEE IT 28(2), 1982), begun evenly
    spaced."""
    dark = darkness(image)
    if not dark.any():
        return dark > 0
    levels = np.linspace(0, 255, 3, dtype=np.float32)
    pixels = dark.reshape(-1, 1).astype(np.float32)
    nearest = np.abs(pixels - levels).argmin(1).astype(np.int32)[:, None]
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 0.1)
    _, cluster, centres = cv2.kmeans(pixels, 3, nearest, stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    return _around((cluster == centres.argmax()).reshape(dark.shape), _darkest(dark))


def region_growing(image: np.ndarray) -> np.ndarray:
    """From the darkest pixel to all connected ones that are at least 55 % as dark (after Adams and
    Bischof, IEEE PAMI 16(6), 1994)."""
    dark = darkness(image)
    y, x = _darkest(dark)
    grown = np.zeros((dark.shape[0] + 2, dark.shape[1] + 2), np.uint8)  # floodFill wants a border
    how = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | 1 << 8
    cv2.floodFill(dark.copy(), grown, (x, y), 255, 0.45 * 255, 255, how)
    return _filled(grown[1:-1, 1:-1] > 0) & bool(dark.any())


def watershed(image: np.ndarray) -> np.ndarray:
    """Flooding the gradient from two markers (Meyer 1992): a disc around the darkest pixel, and all
    that is under a tenth as dark."""
    dark = darkness(image)
    y, x = _darkest(dark)
    markers = np.where(dark < 25, 2, 0).astype(np.int32)
    cv2.circle(markers, (x, y), max(1, round(0.05 * max(dark.shape))), 1, -1)
    # of whole grey levels: finer ones only add basins
    smooth = _blurred(image, 0.015)
    gradient = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    gradient = cv2.normalize(gradient, None, 0, 255, cv2.NORM_MINMAX)
    return (cv2.watershed(cv2.merge([gradient] * 3), markers) == 1) & bool(dark.any())


def _blurred(image: np.ndarray, share: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), share * max(image.shape))


def _darkest(dark: np.ndarray) -> tuple[int, int]:
    y, x = np.unravel_index(dark.argmax(), dark.shape)
    return int(y), int(x)


def _around(mask: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """The component of the mask with the seed in it, cut off from what only a narrow bridge leads
    to, without holes."""
    mask = mask.astype(np.uint8)
    side = 2 * round(OPENING * max(mask.shape) / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc)
    _, components = cv2.connectedComponents(opened if opened[seed] else mask, connectivity=4)
    return _filled(components == components[seed])


def _filled(mask: np.ndarray) -> np.ndarray:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, -1) > 0


CLASSICAL = {
    "otsu": otsu,
    "kmeans": kmeans,
    "watershed": watershed,
    "region_growing": region_growing,
}


class Classical(nn.Module):
    """One of these as a network that gives masks only. Nothing is learned: its state_dict is
    empty."""

    def __init__(
        self,
        segment: Callable[[np.ndarray], np.ndarray],
        settings: Model,
        classes: int,
        weights: str | None = None,
    ):
        super().__init__()
        if settings.options:
            raise ValueError(f"{settings.arch} has no options")
        self.segment = segment

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Each image's own range becomes 0…255: the normalisation is undone up to brightness and
        contrast."""
        grey = images.float().mean(1)
        low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
        levels = ((grey - low) * (255 / (high - low).clamp(min=1e-6))).round().to(torch.uint8)
        masks = np.stack([self.small(image) for image in levels.cpu().numpy()])
        return {"mask": (torch.from_numpy(masks[:, None]).float() * 8 - 4).to(images.device)}

    def small(self, image: np.ndarray) -> np.ndarray:
        """The mask (H,W) bool, found at WORKING pixels at most: nothing in it is finer, and
        blurring a large image takes long."""
        height, width = image.shape
        share = min(1.0, WORKING / max(height, width))
        small = scaled(image, max(1, round(height * share)), max(1, round(width * share)))
        return scaled(self.segment(small).astype(np.float32), height, width) > 0.5

    def fit(self, batches: Batches) -> None:
        """There is nothing to learn."""


FITTED = {"svm": Svm} | {name: partial(Classical, segment) for name, segment in CLASSICAL.items()}
