"""Steps of a recipe: what may happen to an image. :mod:`prefrestore.data.ranges` has the rule for image sizes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from prefrestore.data.operations import (
    Blur,
    ColourJitter,
    ColourShift,
    Frozen,
    GaussianKernel,
    GaussianNoise,
    Grey,
    Interpolation,
    Jpeg,
    Motion,
    Operation,
    PoissonNoise,
    Resize,
    Sinc,
)
from prefrestore.data.ranges import Draw, Extent, Range, merge_bounds

ROUNDING = 1e-9  # of a length: 512 / 17 * 17 must not lose a pixel
SMALL_KERNEL = 13  # below this the published code draws sinc cut-offs from a narrower range
JITTERS: tuple[Literal["brightness", "contrast", "saturation", "hue"], ...] = (
    "brightness",
    "contrast",
    "saturation",
    "hue",
)
TURN: Range = (-math.pi, math.pi)


class Step(Frozen):
    """One step of a recipe; it happens with ``probability``."""

    probability: float = 1.0

    def operations(self, draw: Draw) -> tuple[Operation, ...]:
        """Return what happens to one image."""
        return self.sample(draw) if self.probability == 1 or draw.chance(self.probability) else ()

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        """Return what happens to one image if the step happens at all."""
        raise NotImplementedError

    def bounds(self, extent: Extent) -> dict[str, Range]:  # noqa: ARG002 - some do not depend on it
        """Return the range of every number the step may draw, by ``operation.parameter``; none unless it says so."""
        return {}


class BlurStep(Step):
    """A kernel of the Gaussian family, or a sinc kernel with probability ``sinc``."""

    op: Literal["blur"]
    kernels: dict[GaussianKernel, float]
    sizes: tuple[int, ...]
    sigma: Range
    sinc: float = 0.0
    beta_gaussian: Range = (0.5, 4.0)
    beta_plateau: Range = (1.0, 2.0)

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        size = int(draw.rng.choice(self.sizes))
        if self.sinc and draw.chance(self.sinc):
            return (_sinc(draw, size, math.pi / 3 if size < SMALL_KERNEL else math.pi / 5),)
        kernel = draw.choice(self.kernels)
        sigmas = draw.scaled(draw.third(self.sigma))
        sigma_x = draw.number(sigmas)
        aniso = kernel.endswith("aniso")
        return (
            Blur(
                kernel=kernel,
                size=draw.kernel_size(size),
                sigma_x=sigma_x,
                sigma_y=draw.number(sigmas) if aniso else sigma_x,
                rotation=draw.number(TURN) if aniso else 0.0,
                beta=self._beta(draw, kernel),
            ),
        )

    def _beta(self, draw: Draw, kernel: str) -> float:
        """Return the shape: below or above one with equal chance, as published."""
        low, high = self._betas(kernel)
        return draw.number((low, 1.0) if draw.chance(0.5) else (1.0, high)) if low < high else 1.0

    def _betas(self, kernel: str) -> Range:
        if kernel in {"iso", "aniso"}:
            return 1.0, 1.0
        return self.beta_plateau if kernel.startswith("plateau") else self.beta_gaussian

    def bounds(self, extent: Extent) -> dict[str, Range]:
        sigmas = extent.scaled(extent.third(self.sigma))
        betas = [end for kernel in self.kernels for end in self._betas(kernel)]
        sinc = _sinc_bounds(extent, self.sizes, math.pi / 5) if self.sinc else {}
        return sinc | {
            "blur.size": extent.kernel_sizes(self.sizes),
            "blur.sigma_x": sigmas,
            "blur.sigma_y": sigmas,
            "blur.rotation": TURN,
            "blur.beta": (min(betas), max(betas)),
        }


class SincStep(Step):
    """A sinc kernel."""

    op: Literal["sinc"]
    sizes: tuple[int, ...]

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        return (_sinc(draw, int(draw.rng.choice(self.sizes)), math.pi / 3),)

    def bounds(self, extent: Extent) -> dict[str, Range]:
        return _sinc_bounds(extent, self.sizes, math.pi / 3)


def _sinc(draw: Draw, size: int, lowest: float) -> Sinc:
    cutoff = draw.number((lowest, math.pi)) / draw.ratio
    return Sinc(size=draw.kernel_size(size), cutoff=min(math.pi, cutoff))


def _sinc_bounds(extent: Extent, sizes: tuple[int, ...], lowest: float) -> dict[str, Range]:
    cutoffs = min(math.pi, lowest / extent.ratio), min(math.pi, math.pi / extent.ratio)
    return {"sinc.size": extent.kernel_sizes(sizes), "sinc.cutoff": cutoffs}


class MotionStep(Step):
    """A straight motion path."""

    op: Literal["motion"]
    size: int
    length: Range

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        length = draw.number(draw.scaled(draw.third(self.length)))
        return (Motion(size=draw.kernel_size(self.size), length=length, rotation=draw.number(TURN)),)

    def bounds(self, extent: Extent) -> dict[str, Range]:
        return {
            "motion.size": extent.kernel_sizes((self.size,)),
            "motion.length": extent.scaled(extent.third(self.length)),
            "motion.rotation": TURN,
        }


class DownsampleStep(Step):
    """Bilinear resampling by a factor: side before over side after."""

    op: Literal["downsample"]
    factor: Range

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        return (_resize(draw, 1 / draw.number(self._factors(draw)), "bilinear"),)

    def _factors(self, extent: Extent) -> Range:
        low, high = (end if end <= 1 else max(1.0, end * extent.ratio) for end in extent.third(self.factor))
        return low, high

    def bounds(self, extent: Extent) -> dict[str, Range]:
        low, high = self._factors(extent)
        return _side_bounds(extent, 1 / high, 1 / low)


class ScaleChoice(Frozen):
    """One range of scales and how often it is taken."""

    weight: float
    scale: Range


class RescaleStep(Step):
    """Resampling to a scale: side after over a share of the image's own side."""

    op: Literal["rescale"]
    relative_to: float
    modes: dict[Interpolation, float]
    choices: tuple[ScaleChoice, ...]

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        choice = draw.choice({choice: choice.weight for choice in self.choices})
        scale = self._reference(draw) * draw.number(self._scales(draw, choice))
        return (_resize(draw, scale, draw.choice(self.modes)),)

    def _reference(self, extent: Extent) -> float:
        """Return the share of the image's side that the scale refers to: as many pixels as at 512, if there are."""
        return 1.0 if self.relative_to == 1 else min(1.0, self.relative_to / extent.ratio)

    def _scales(self, extent: Extent, choice: ScaleChoice) -> Range:
        low, high = choice.scale
        if low >= 1:
            return low, high
        smallest = low * self.relative_to / extent.ratio  # as a share of the image's side
        return extent.third((min(1.0, smallest / self._reference(extent)), high), worst="low")

    def bounds(self, extent: Extent) -> dict[str, Range]:
        ends = [self._reference(extent) * end for choice in self.choices for end in self._scales(extent, choice)]
        return _side_bounds(extent, min(ends), max(ends))


class RestoreStep(Step):
    """Resampling to the image's own size."""

    op: Literal["restore"]
    mode: Interpolation

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        return (_resize(draw, 1.0, self.mode),)

    def bounds(self, extent: Extent) -> dict[str, Range]:
        return _side_bounds(extent, 1.0, 1.0)


def _resize(extent: Extent, scale: float, mode: Interpolation) -> Resize:
    return Resize(height=_side(extent.height * scale), width=_side(extent.width * scale), mode=mode)


def _side(length: float) -> int:
    return max(1, math.floor(length + ROUNDING))


def _side_bounds(extent: Extent, smallest: float, largest: float) -> dict[str, Range]:
    return {
        "resize.height": (_side(extent.height * smallest), _side(extent.height * largest)),
        "resize.width": (_side(extent.width * smallest), _side(extent.width * largest)),
    }


class GaussianNoiseStep(Step):
    """White noise, the same in all channels with probability ``grey``."""

    op: Literal["gaussian_noise"]
    sigma: Range
    grey: float = 0.0

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        sigma = draw.number(draw.third(self.sigma))
        return (GaussianNoise(sigma=sigma, grey=draw.chance(self.grey), seed=_noise_seed(draw)),)

    def bounds(self, extent: Extent) -> dict[str, Range]:
        return {"gaussian_noise.sigma": extent.third(self.sigma), "gaussian_noise.grey": (0, 1)}


class PoissonNoiseStep(Step):
    """Shot noise, the same in all channels with probability ``grey``."""

    op: Literal["poisson_noise"]
    scale: Range
    grey: float

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        scale = draw.number(draw.third(self.scale))
        return (PoissonNoise(scale=scale, grey=draw.chance(self.grey), seed=_noise_seed(draw)),)

    def bounds(self, extent: Extent) -> dict[str, Range]:
        return {"poisson_noise.scale": extent.third(self.scale), "poisson_noise.grey": (0, 1)}


def _noise_seed(draw: Draw) -> int:
    return int(draw.rng.integers(2**62))


class JpegStep(Step):
    """JPEG; the drawn quality is cut to a whole number, as published."""

    op: Literal["jpeg"]
    quality: Range

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        return (Jpeg(quality=math.floor(draw.number(draw.third(self.quality, worst="low")))),)

    def bounds(self, extent: Extent) -> dict[str, Range]:
        low, high = extent.third(self.quality, worst="low")
        return {"jpeg.quality": (math.floor(low), math.floor(high))}


class ColourShiftStep(Step):
    """A shift of each channel by up to ``shift`` of 255."""

    op: Literal["colour_shift"]
    shift: float

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        red, green, blue = (draw.number((-self.shift, self.shift)) for _ in range(3))
        return (ColourShift(red=red, green=green, blue=blue),)

    def bounds(self, extent: Extent) -> dict[str, Range]:  # noqa: ARG002 - colours do not scale
        return {f"colour_shift.{name}": (-self.shift, self.shift) for name in ("red", "green", "blue")}


class ColourJitterStep(Step):
    """Brightness, contrast, saturation and hue, in random order."""

    op: Literal["colour_jitter"]
    brightness: Range
    contrast: Range
    saturation: Range
    hue: Range

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        return (
            ColourJitter(
                brightness=draw.number(self.brightness),
                contrast=draw.number(self.contrast),
                saturation=draw.number(self.saturation),
                hue=draw.number(self.hue),
                order=tuple(JITTERS[place] for place in draw.rng.permutation(len(JITTERS))),
            ),
        )

    def bounds(self, extent: Extent) -> dict[str, Range]:  # noqa: ARG002 - colours do not scale
        return {f"colour_jitter.{name}": getattr(self, name) for name in JITTERS}


class GreyStep(Step):
    """Conversion to grey."""

    op: Literal["grey"]

    def sample(self, draw: Draw) -> tuple[Operation, ...]:  # noqa: ARG002 - nothing to draw
        return (Grey(),)


class EitherStep(Step):
    """One of several sequences, with equal chance."""

    op: Literal["either"]
    branches: tuple[tuple[AnyStep, ...], ...]

    def sample(self, draw: Draw) -> tuple[Operation, ...]:
        branch = self.branches[int(draw.rng.integers(len(self.branches)))]
        return tuple(operation for step in branch for operation in step.operations(draw))

    def bounds(self, extent: Extent) -> dict[str, Range]:
        return merge_bounds(step.bounds(extent) for branch in self.branches for step in branch)


AnyStep = Annotated[
    BlurStep
    | SincStep
    | MotionStep
    | DownsampleStep
    | RescaleStep
    | RestoreStep
    | GaussianNoiseStep
    | PoissonNoiseStep
    | JpegStep
    | ColourShiftStep
    | ColourJitterStep
    | GreyStep
    | EitherStep,
    Field(discriminator="op"),
]
