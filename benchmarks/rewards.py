"""How many images a second each reward scores, and what remembering HQ faces gives. Prints a table, writes JSON."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data

from prefrestore import artifacts
from prefrestore.data.pairs import to_tensor
from prefrestore.faces.dlib_models import face_detector, shape_predictor
from prefrestore.models.lpips import Lpips
from prefrestore.rewards.base import References, Reward
from prefrestore.rewards.clip import ClipReward
from prefrestore.rewards.faces import FaceReader, IdentityReward, LandmarksReward
from prefrestore.rewards.lpips import LpipsReward
from prefrestore.rewards.network import NetworkConfig, PreferenceNetwork
from prefrestore.rewards.preference import PreferenceReward
from prefrestore.rewards.sharpness import SharpnessReward
from prefrestore.rewards.structure import StructureReward

FACES, GROUP_SIZE = 2, 16
BOUND = 2 * GROUP_SIZE / (GROUP_SIZE + 1)
"""What remembering HQ can give at most: 32 looks become 17."""


def faces(size: int) -> References:
    """Return HQ images of two views of one public-domain face, each repeated for a group; LQ is a blurred copy."""
    image = np.ascontiguousarray(data.astronaut()[0:220, 120:340])
    shape = shape_predictor()(image, face_detector()(image, 1)[0])
    points = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    mirrored = np.stack([219 - points[:, 0], points[:, 1]], 1)
    scaled = [(view + 0.5) * size / 220 - 0.5 for view in (points, mirrored)]
    hq = np.repeat(np.stack([small, small[:, ::-1]]), GROUP_SIZE, axis=0)
    lq = np.stack([cv2.GaussianBlur(picture, (0, 0), 2) for picture in hq])
    count = FACES * GROUP_SIZE
    landmarks = np.repeat(np.stack(scaled), GROUP_SIZE, axis=0)
    return References(to_tensor(lq), to_tensor(hq), [""] * count, landmarks, [str(row) for row in range(count)])


def noisy(images: torch.Tensor, turn: int, shared: bool = False) -> torch.Tensor:
    """Return images no cache has seen: fresh noise for every image, or the same for all of a face (``shared``)."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(turn))
    if shared:
        noise = noise[::GROUP_SIZE].repeat_interleave(GROUP_SIZE, dim=0)
    return (images + 0.02 * noise).clamp(0, 1)


def images_a_second(reward: Reward, references: References, turns: int, shared: bool) -> float:
    """Return the best rate, per second of processor time, of ``turns`` runs after one to warm up.

    Every run has new HQ and new restored images.

    With ``shared`` the images of a face have one HQ image, as in alignment; without, each has its own, as if HQ
    were looked at again for every restored image.
    """
    hq = references.hq
    assert hq is not None
    rates = []
    for turn in range(turns + 1):
        own = replace(references, hq=noisy(hq, 2 * turn, shared))
        restored = noisy(hq, 2 * turn + 1)
        started = time.process_time()
        reward.score(restored, own)
        rates.append(len(hq) / (time.process_time() - started))
    return max(rates[1:])


def measure(references: References, turns: int) -> dict[str, dict[str, float]]:
    """Return images a second of every reward, with and without memory of the HQ side where there is one."""
    network = PreferenceNetwork(NetworkConfig(width=12, levels=3, members=2, text_size=8)).eval()
    plain: list[Reward] = [PreferenceReward(network), StructureReward(), SharpnessReward()]
    table = {
        reward.name: {"images_a_second": images_a_second(reward, references, turns, shared=True)} for reward in plain
    }
    vgg = Lpips().eval().requires_grad_(False)  # what weights it has does not change how long it takes
    makers: dict[str, Callable[[], Reward]] = {
        "lpips": lambda: LpipsReward(Path("unused"), vgg),
        "identity": lambda: IdentityReward(FaceReader(1)),
        "landmarks": lambda: LandmarksReward(FaceReader(1)),
    }
    for name, make in makers.items():
        rates = [images_a_second(make(), references, turns, shared) for shared in (True, False)]
        table[name] = dict(zip(("images_a_second", "without_memory"), rates, strict=True))
    return table


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels")
    parser.add_argument("--clip", help="folder or hub id of a CLIP model: measure clip_score as well")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/rewards.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    references = faces(options.size)
    table = measure(references, options.turns)
    if options.clip:
        told = replace(references, texts=["a photograph of a face"] * len(references.texts))
        rate = images_a_second(ClipReward("clip_score", options.clip), told, options.turns, shared=True)
        table["clip_score"] = {"images_a_second": rate}
    print(f"{FACES} faces x {GROUP_SIZE} restorations, {options.size} px, one core")
    print(f"{'reward':<12} {'img/s':>10} {'without HQ memory':>18} {'gain':>6}")
    for name, row in table.items():
        rate, again = row["images_a_second"], row.get("without_memory")
        print(f"{name:<12} {rate:10.1f} " + (f"{again:18.1f} {rate / again:6.2f}" if again else f"{'-':>18} {'-':>6}"))
    print(f"bound of the gain: {BOUND:.2f}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(
        options.json, {"size": options.size, "group_size": GROUP_SIZE, "bound": BOUND, "rewards": table}
    )


if __name__ == "__main__":
    main()
