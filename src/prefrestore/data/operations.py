"""What happened to an image, as data: operations with every parameter drawn, and the record that lists them.

A record says all that is needed to make the same pixels again; it knows nothing of recipes, ranges or sizes rules.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Interpolation = Literal["area", "bilinear", "bicubic"]
GaussianKernel = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
Severity = Literal["any", "mild", "moderate", "severe"]


class Frozen(BaseModel):
    """Base of operations: immutable, exact JSON round trip, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Blur(Frozen):
    """Correlation with a kernel of the Gaussian family, borders reflected."""

    op: Literal["blur"] = "blur"
    kernel: GaussianKernel
    size: int = Field(description="side of the kernel, odd, pixels")
    sigma_x: float = Field(description="pixels")
    sigma_y: float = Field(description="pixels")
    rotation: float = Field(description="radians")
    beta: float = Field(description="shape: 1 for a Gaussian")


class Sinc(Frozen):
    """Correlation with a circular low-pass kernel: ringing."""

    op: Literal["sinc"] = "sinc"
    size: int
    cutoff: float = Field(description="radians per pixel, at most pi")


class Motion(Frozen):
    """Correlation with a straight, uniform motion path."""

    op: Literal["motion"] = "motion"
    size: int
    length: float = Field(description="pixels")
    rotation: float = Field(description="radians")


class Resize(Frozen):
    """Resampling to a size in pixels."""

    op: Literal["resize"] = "resize"
    height: int
    width: int
    mode: Interpolation


class GaussianNoise(Frozen):
    """Additive white noise, clipped to the range of the image."""

    op: Literal["gaussian_noise"] = "gaussian_noise"
    sigma: float = Field(description="standard deviation, of 255")
    grey: bool = Field(description="one field for all channels")
    seed: int


class PoissonNoise(Frozen):
    """Shot noise, scaled, clipped to the range of the image."""

    op: Literal["poisson_noise"] = "poisson_noise"
    scale: float
    grey: bool
    seed: int


class Jpeg(Frozen):
    """JPEG coding and decoding, 4:2:0."""

    op: Literal["jpeg"] = "jpeg"
    quality: int


class ColourShift(Frozen):
    """A constant added to each channel, of 255, clipped."""

    op: Literal["colour_shift"] = "colour_shift"
    red: float
    green: float
    blue: float


class ColourJitter(Frozen):
    """Brightness, contrast, saturation factors and a hue turn, in the order given."""

    op: Literal["colour_jitter"] = "colour_jitter"
    brightness: float
    contrast: float
    saturation: float
    hue: float = Field(description="turns")
    order: tuple[Literal["brightness", "contrast", "saturation", "hue"], ...]


class Grey(Frozen):
    """Luma (BT.601) in all channels."""

    op: Literal["grey"] = "grey"


Operation = Annotated[
    Blur | Sinc | Motion | Resize | GaussianNoise | PoissonNoise | Jpeg | ColourShift | ColourJitter | Grey,
    Field(discriminator="op"),
]
Kernel = Blur | Sinc | Motion


class DegradationRecord(Frozen):
    """Everything that was done to one image, in order; the last resize restores the size."""

    recipe: str
    severity: Severity
    height: int = Field(description="of the image, pixels")
    width: int
    operations: tuple[Operation, ...]
    rounding: Literal["truncate", "nearest"] = Field(description="how the last float image becomes 8-bit")

    @property
    def size(self) -> int:
        """Return the shorter side, pixels."""
        return min(self.height, self.width)

    def to_json(self) -> str:
        """Return the record as compact JSON; floats survive exactly."""
        return self.model_dump_json()

    @staticmethod
    def from_json(text: str) -> DegradationRecord:
        """Read what :meth:`to_json` wrote."""
        return DegradationRecord.model_validate_json(text)

    def parameters(self) -> list[dict[str, float]]:
        """Return the drawn numbers of each operation, by ``operation.parameter``; seeds left out."""
        return [
            {
                f"{operation.op}.{name}": float(value)
                for name, value in operation
                if name != "seed" and isinstance(value, int | float)
            }
            for operation in self.operations
        ]
