"""What a procedural person looks like: every visible trait, drawn once per index for every picture size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from prefrestore.runtime.seeding import rng

SHAPE_NAMES = (
    "face_width", "jaw_width", "chin_length", "chin_width", "forehead", "cheekbone", "eye_spacing", "eye_size",
    "eye_tilt", "eye_height", "brow_height", "brow_tilt", "brow_arch", "nose_width", "nose_length", "nose_height",
    "nose_tip", "mouth_width", "mouth_height", "upper_lip", "lower_lip", "neck_width", "ear_size", "brow_weight",
)  # fmt: skip

HAIR_COLORS = ("black", "dark brown", "brown", "auburn", "red", "blond", "light blond", "grey", "white")
EYE_COLORS = ("dark brown", "brown", "hazel", "green", "blue", "grey")
SHORT_STYLES = ("cropped", "short", "side-parted", "textured", "short curly")
LONG_STYLES = ("bob", "bob with a fringe", "long straight", "long wavy", "long curly", "tied back", "afro")
BARE_STYLES = ("bald", "receding")
FACIAL_HAIR = ("none", "stubble", "moustache", "goatee", "short beard", "full beard")
GLASSES = ("none", "round", "rectangular", "thin-rimmed", "browline")
EXPRESSIONS = ("neutral", "slight smile", "broad smile", "open mouth")
BACKGROUNDS = ("plain", "gradient", "outdoors", "office")
CLOTHING = ("crew neck", "v-neck", "turtleneck", "shirt", "jacket", "hoodie")
TINTS = ("blue", "grey", "green", "brown", "red", "teal", "beige", "black", "white", "purple")


@dataclass(frozen=True)
class Traits:
    """Everything visible of one person and one shot. Angles in degrees, `melanin` and `grey` in [0, 1]."""

    age: float
    melanin: float
    undertone: float
    hair_style: str
    hair_color: str
    grey: float
    facial_hair: str
    glasses: str
    glasses_color: str
    expression: str
    eye_color: str
    freckles: bool
    earrings: bool
    clothing: str
    clothing_color: str
    background: str
    background_color: str
    yaw: float
    pitch: float
    roll: float
    light_azimuth: float
    light_elevation: float
    light_softness: float
    warmth: float
    shape: dict[str, float] = field(hash=False)

    @property
    def age_band(self) -> str:
        """Return `young`, `adult`, `middle-aged` or `older`: the words that the wrinkles and the hair can show."""
        bands = ((30.0, "young"), (45.0, "adult"), (60.0, "middle-aged"))
        return next((word for limit, word in bands if self.age < limit), "older")

    @property
    def skin_tone(self) -> str:
        """Return the word for the skin's lightness."""
        bands = ((0.16, "fair"), (0.36, "light"), (0.58, "tan"), (0.78, "brown"))
        return next((word for limit, word in bands if self.melanin < limit), "dark")

    def but(self, **changes: object) -> Traits:
        """Return these traits with some replaced."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _choose(random: np.random.Generator, options: tuple[str, ...], weights: tuple[float, ...]) -> str:
    left = random.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        left -= weight
        if left < 0.0:
            return option
    return options[-1]


def _draw_hair_style(random: np.random.Generator, age: float, build: float) -> str:
    long_share = 1.0 / (1.0 + np.exp(3.0 * build))
    if random.random() < long_share:
        return _choose(random, LONG_STYLES, (2.0, 1.6, 2.2, 2.2, 1.5, 1.6, 0.9))
    if random.random() < 0.05 + 0.003 * max(0.0, age - 30.0) * 5.0 * 0.5:
        return _choose(random, BARE_STYLES, (1.0, 1.3))
    return _choose(random, SHORT_STYLES, (1.2, 1.6, 1.6, 1.5, 1.0))


def _draw_hair_color(random: np.random.Generator, age: float, melanin: float) -> tuple[str, float]:
    """Return the colour's name and the share of grey strands."""
    turn = (age - 58.0 + 8.0 * random.standard_normal()) / 10.0
    if turn > 1.1:
        return "white", 1.0
    if turn > 0.0:
        return "grey", 0.75
    light = max(0.0, 0.5 - melanin)
    weights = (0.6 + 4.0 * melanin, 1.5, 1.6 * light * 2, 0.9 * light * 2, 0.7 * light, 3.0 * light, 1.6 * light)
    return _choose(random, HAIR_COLORS[:7], weights), max(0.0, 0.22 * (turn + 0.8))


def _draw_facial_hair(random: np.random.Generator, build: float, hair_style: str) -> str:
    share = 1.0 / (1.0 + np.exp(-4.0 * (build - 0.15)))
    if random.random() > share * (0.75 if hair_style not in LONG_STYLES else 0.12):
        return "none"
    return _choose(random, FACIAL_HAIR[1:], (1.3, 0.8, 0.8, 1.3, 1.2))


def _draw_eye_color(random: np.random.Generator, melanin: float) -> str:
    light = max(0.0, 0.55 - melanin)
    return _choose(random, EYE_COLORS, (0.5 + 2.0 * melanin, 1.0, 1.2 * light, 1.2 * light, 2.4 * light, 0.8 * light))


def _draw_shape(random: np.random.Generator, build: float) -> dict[str, float]:
    """Return standard-normal shape parameters, cut at 2.2, correlated through `build` (broad against fine)."""
    shape = dict(zip(SHAPE_NAMES, np.clip(random.standard_normal(len(SHAPE_NAMES)), -2.2, 2.2).tolist(), strict=True))
    pull = {"jaw_width": 0.8, "chin_width": 0.7, "brow_weight": 0.9, "neck_width": 0.9, "nose_width": 0.4,
            "upper_lip": -0.5, "lower_lip": -0.5, "eye_size": -0.6, "brow_height": -0.6, "cheekbone": 0.2}  # fmt: skip
    return {name: 1.05 * value + pull.get(name, 0.0) * build for name, value in shape.items()}


def draw_traits(index: int, seed: int) -> Traits:
    """Return the traits of person `index`; a function of (seed, index) alone."""
    random = rng(seed, "portrait-traits", index)
    build = float(random.uniform(-1.0, 1.0))
    age = float(20.0 + 57.0 * random.random() ** 1.8)
    melanin = float(np.clip(random.beta(0.9, 1.2), 0.02, 0.98))
    hair_style = _draw_hair_style(random, age, build)
    hair_color, grey = _draw_hair_color(random, age, melanin)
    facial_hair = _draw_facial_hair(random, build, hair_style)
    return Traits(
        age=age,
        melanin=melanin,
        undertone=float(random.uniform(-1.0, 1.0)),
        hair_style=hair_style,
        hair_color=hair_color,
        grey=grey,
        facial_hair=facial_hair,
        glasses=_choose(random, GLASSES, (2.6, 0.3, 0.4, 0.35, 0.2)),
        glasses_color=_choose(random, ("black", "brown", "silver", "gold"), (1.0, 0.7, 0.6, 0.5)),
        expression=_choose(random, EXPRESSIONS, (1.1, 1.2, 1.5, 0.45)),
        eye_color=_draw_eye_color(random, melanin),
        freckles=bool(random.random() < 0.35 * max(0.0, 0.45 - melanin) / 0.45),
        earrings=bool(build < 0.0 and random.random() < 0.45),
        clothing=_choose(random, CLOTHING, (1.2, 0.9, 0.7, 1.1, 1.3, 0.6)),
        clothing_color=_choose(random, TINTS, (1.5, 1.2, 0.8, 0.7, 0.7, 0.7, 0.6, 1.2, 0.9, 0.5)),
        background=_choose(random, BACKGROUNDS, (0.9, 1.5, 1.0, 1.0)),
        background_color=_choose(random, TINTS, (1.5, 1.3, 0.9, 0.8, 0.4, 0.7, 0.8, 0.4, 0.5, 0.3)),
        yaw=float(np.clip(9.0 * random.standard_normal(), -21.0, 21.0)),
        pitch=float(np.clip(4.0 * random.standard_normal(), -9.0, 9.0)),
        roll=float(np.clip(2.0 * random.standard_normal(), -5.0, 5.0)),
        light_azimuth=float(random.uniform(-65.0, 65.0)),
        light_elevation=float(random.uniform(8.0, 42.0)),
        light_softness=float(random.uniform(0.15, 0.9)),
        warmth=float(np.clip(random.standard_normal(), -2.0, 2.0)),
        shape=_draw_shape(random, build),
    )
