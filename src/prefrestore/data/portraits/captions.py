"""Sentences that say exactly what was drawn."""

from __future__ import annotations

from prefrestore.data.portraits.traits import BARE_STYLES, Traits

_PERSON = {
    "young": "a young person",
    "adult": "an adult",
    "middle-aged": "a middle-aged person",
    "older": "an older person",
}
_HAIR = {
    "bald": "a bald head", "receding": "receding {} hair", "cropped": "cropped {} hair", "short": "short {} hair",
    "side-parted": "short side-parted {} hair", "textured": "short textured {} hair",
    "short curly": "short curly {} hair",
    "bob": "a {} bob", "bob with a fringe": "a {} bob with a fringe", "long straight": "long straight {} hair",
    "long wavy": "long wavy {} hair", "long curly": "long curly {} hair", "tied back": "{} hair tied back",
    "afro": "a {} afro",
}  # fmt: skip
_FACIAL = {"stubble": "stubble", "moustache": "a moustache", "goatee": "a goatee", "short beard": "a short beard",
           "full beard": "a full beard"}  # fmt: skip
_GLASSES = {"round": "round glasses", "rectangular": "rectangular glasses", "thin-rimmed": "thin-rimmed glasses",
            "browline": "browline glasses"}  # fmt: skip
_MOOD = {"neutral": "with a neutral expression", "slight smile": "smiling slightly", "broad smile": "smiling broadly",
         "open mouth": "with an open mouth"}  # fmt: skip
_GARMENT = {"crew neck": "a crew-neck top", "v-neck": "a v-neck top", "turtleneck": "a turtleneck", "shirt": "a shirt",
            "jacket": "a jacket over a white shirt", "hoodie": "a hoodie"}  # fmt: skip
_OPENINGS = ("a portrait of {}", "a photo of {}", "a head shot of {}", "{}")


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _article(phrase: str) -> str:
    return f"an {phrase[2:]}" if phrase[:2] == "a " and phrase[2] in "aeiou" else phrase


def _features(traits: Traits) -> list[str]:
    parts = [f"{traits.skin_tone} skin"]
    hair = _HAIR[traits.hair_style]
    parts.append(_article(hair.format(traits.hair_color)) if traits.hair_style != BARE_STYLES[0] else hair)
    if traits.facial_hair != "none":
        parts.append(_FACIAL[traits.facial_hair])
    if traits.freckles:
        parts.append("freckles")
    if traits.glasses != "none":
        parts.append(_GLASSES[traits.glasses])
    return parts


def _turn(traits: Traits) -> list[str]:
    if abs(traits.yaw) < 9.0:
        return []
    return [f"turned slightly to the {'right' if traits.yaw > 0 else 'left'}"]


def _setting(traits: Traits) -> str:
    places = {"outdoors": "outdoors", "office": "in a room"}
    return places.get(traits.background) or f"in front of a {traits.background_color} background"


def caption(traits: Traits) -> str:
    """Return one sentence that names visible traits only, equal for equal traits; left and right are the picture's."""
    opening = _OPENINGS[int(traits.age * 1000.0) % len(_OPENINGS)].format(_PERSON[traits.age_band])
    garment = _GARMENT[traits.clothing].replace("a ", f"a {traits.clothing_color} ", 1)
    rest = [_MOOD[traits.expression], *_turn(traits), f"wearing {garment}", _setting(traits)]
    return f"{opening} with {_join(_features(traits))}, {', '.join(rest)}"
