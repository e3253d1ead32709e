"""Messages of the Open Inference Protocol (V2) as far as the predictor speaks them, and what is in them.

A request has the tensor ``image`` (BYTES, one element: a picture file in base64) and may have ``text`` (BYTES) and
``seed`` (INT64); the answer has ``restored`` (BYTES: a PNG in base64).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_TEXT = 2000
MAX_SEED = 2**63 - 1
Word = Annotated[str, Field(max_length=200)]


class BadRequestError(Exception):
    """A request that cannot be answered; the message tells the caller why."""


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Tensor(Message):
    """One input or output."""

    name: Word
    shape: Annotated[tuple[int, ...], Field(max_length=8)]
    datatype: Word
    parameters: dict[str, Any] | None = None
    data: Annotated[tuple[Any, ...], Field(max_length=16)]


class InferenceRequest(Message):
    """What is asked; outputs and parameters that we do not know are ignored, as the protocol allows."""

    id: Word | None = None
    inputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=16)]


class InferenceResponse(Message):
    """What is answered."""

    model_name: str
    model_version: str
    id: str | None
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Question:
    """A request read: the picture file, a description that may be empty, and the seed."""

    id: str | None
    image: bytes
    text: str
    seed: int


Datatype = Literal["BYTES", "INT64"]
INPUTS: Mapping[str, Datatype] = {"image": "BYTES", "text": "BYTES", "seed": "INT64"}
OUTPUTS: Mapping[str, Datatype] = {"restored": "BYTES"}


def read_request(body: bytes) -> Question:
    """Read a request's body.

    Raises:
        BadRequestError: says what is wrong.
    """
    try:
        request = InferenceRequest.model_validate_json(body)
    except ValidationError as error:
        raise BadRequestError(_first(error)) from None
    tensors = {tensor.name: tensor for tensor in request.inputs}
    if len(tensors) != len(request.inputs):
        raise BadRequestError("inputs: two have the same name")
    if unknown := sorted(set(tensors) - set(INPUTS)):
        raise BadRequestError(f"inputs: {unknown[0]!r} is unknown: known are {', '.join(INPUTS)}")
    if "image" not in tensors:
        raise BadRequestError("inputs: image is missing")
    values = {name: _element(tensor) for name, tensor in tensors.items()}
    return Question(request.id, _picture(values["image"]), _text(values.get("text", "")), _seed(values.get("seed", 0)))


def _first(error: ValidationError) -> str:
    found = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in found["loc"][:6])
    return f"{place}: {found['msg']:.200}" if place else f"{found['msg']:.200}"


def _element(tensor: Tensor) -> Any:
    """Return the one element of a tensor of one."""
    if tensor.datatype != INPUTS[tensor.name]:
        raise BadRequestError(f"{tensor.name}: datatype must be {INPUTS[tensor.name]}")
    if tensor.shape not in ((1,), (1, 1)) or len(tensor.data) != 1:
        raise BadRequestError(f"{tensor.name}: must have one element, shape [1]")
    return tensor.data[0]


def _picture(value: Any) -> bytes:
    if not isinstance(value, str):
        raise BadRequestError("image: must be a picture file in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequestError("image: is no base64") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise BadRequestError(f"text: must be a string of at most {MAX_TEXT} characters")
    return value


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise BadRequestError("seed: must be a whole number from 0 to 2^63 - 1")
    return value


def write_response(question: Question, restored: bytes, model: str, version: str) -> InferenceResponse:
    """Return the answer that carries a restored picture (a PNG file)."""
    data = (base64.b64encode(restored).decode(),)
    output = Tensor(
        name="restored", shape=(1,), datatype="BYTES", parameters={"content_type": "image/png;base64"}, data=data
    )
    return InferenceResponse(model_name=model, model_version=version, id=question.id, outputs=(output,))


def metadata(model: str, version: str) -> dict[str, Any]:
    """Return what the protocol tells about a model."""

    def described(tensors: Mapping[str, Datatype]) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": datatype, "shape": [1]} for name, datatype in tensors.items()]

    return {
        "name": model,
        "versions": [version],
        "platform": "prefrestore",
        "inputs": described(INPUTS),
        "outputs": described(OUTPUTS),
    }
