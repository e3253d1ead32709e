"""``kill -9`` at a random moment of a stage, the same command again: the bytes of an uninterrupted run, nothing lost.

Short: one moment for each of some stages, at the smoke preset's own sizes. Long: fifty moments over all stages that
train or write records, each running ten seconds or more.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
import pytest
import yaml

from prefrestore import artifacts
from prefrestore.config import PublishConfig
from prefrestore.data.pairs import load_pairs
from prefrestore.data.vote_store import append, read
from prefrestore.registry.versions import Registry
from prefrestore.reward_model.candidates import Origin, make_candidate, write_candidates
from prefrestore.runtime import seeding
from prefrestore.stage import ARTIFACTS, STAGES
from support import graph as graphs
from support import releases
from support.killing import Work, finish, kill_after, seconds_of
from support.soak import SOAK, scaled
from support.votes import vote

pytestmark = pytest.mark.xdist_group("graph")

Tell = Callable[[str], None]
LEAST_SECONDS = 10.0
TRIES = 5
"""A moment after the end of the work is drawn again, so often."""
LONGER: dict[str, dict[str, Any]] = {
    "train_codec": {"steps": 350, "tokenizer": {"steps": 350}},
    "train_baseline": {"steps": 350},
    "pretrain": {"step1": {"steps": 70}, "step2": {"steps": 90}},
    "train_reward": {"steps": 90},
    "align": {"epochs": 5},
    "degrade": {"variants": 60},
    "collect_preferences": {"simulated": {"pairs": 20_000}},
}
MOMENTS = scaled(
    {"train_codec": 1, "degrade": 1, "collect_preferences": 1, "train_reward": 1},
    {name: 7 if name in ("pretrain", "align") else 6 for name in LONGER},
)
PUBLICATIONS = scaled(1, 6)
VOTE_KILLS = scaled(3, 40)
BLURS = 12
SMALL, LARGE = 30_000, 60_000_000
"""Numbers in a candidate's weights."""


def _enough(seconds_of_times: Callable[[int], float]) -> int:
    """Return how many times the work must be done to take long enough on this machine."""
    for times in (1, 2, 4, 8, 16, 32):
        if seconds_of_times(times) >= 1.2 * LEAST_SECONDS:
            return times
    raise AssertionError(f"no amount of work takes {LEAST_SECONDS} s")


def _section(folder: Path, name: str, times: int) -> dict[str, Any]:
    """Return a stage's section, in the long form with more work in it."""
    section = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))[name]
    for key, value in (LONGER[name] if SOAK else {}).items():
        if isinstance(value, dict):
            section[key] |= {inner: times * amount for inner, amount in value.items()}
        else:
            section[key] = times * value
    return section


def _many_candidates(graph: Path, target: Path, blurs: int) -> Path:
    """Write blurs of every training pair: more to measure and to compare than smoke draws."""
    pairs = load_pairs(graph / ARTIFACTS["pairs"].path, "train")
    rows = [
        make_candidate(face, 0, cv2.GaussianBlur(hq, (0, 0), 0.3 + 2.4 * number / blurs), Origin(number, 4, "base"))
        for face, hq in zip(pairs.ids, pairs.hq, strict=True)
        for number in range(blurs)
    ]
    with artifacts.replacing(target) as folder:
        write_candidates(folder, rows)
        artifacts.write_manifest(folder, artifacts.Manifest("candidates", "sample_candidates", {}, {}))
    return target


def _work(graph: Path, name: str, folder: Path, times: int = 1) -> Work:
    inputs = {port: graph / ARTIFACTS[port].path for port in STAGES[name].inputs}
    if name == "collect_preferences" and SOAK:
        inputs["candidates"] = _many_candidates(graph, folder / "candidates", times * BLURS)
    (port,) = STAGES[name].outputs
    place = folder / port
    return Work(name, _section(graph, name, times), inputs, place, folder / "c", graphs.environment(graph), graph)


def _whole(graph: Path, name: str, folder: Path) -> tuple[Work, Path, float]:
    """Return the work, what an uninterrupted run of it wrote, and how long it took.

    In the short form the graph has run it; in the long form the work grows until it takes long enough.
    """
    if not SOAK:
        work = _work(graph, name, folder)
        output = graph / ARTIFACTS[work.output.name].path
        return work, output, json.loads(output.with_name(f"{output.name}.run.json").read_text())["wall_seconds"]

    def at(times: int) -> tuple[Work, Work]:
        work = _work(graph, name, folder / f"{times} times", times)
        return work, work.at(folder / f"{times} times" / "whole")

    def seconds_of_times(times: int) -> float:
        finish(at(times)[1])
        return seconds_of(at(times)[1])

    work, whole = at(_enough(seconds_of_times))
    return work, whole.output, seconds_of(whole)


def _killed(work: Work, seconds: float, *names: int | str) -> float:
    """Kill a work at a random moment of it and return the moment; no part of what it had written is to be seen."""
    for turn in range(TRIES):
        moment = seconds * seeding.rng("kill", work.stage, *names, turn).random()
        kill_after(work, moment)
        if not work.output.exists():
            return moment
        seconds = min(seconds, seconds_of(work))  # the machine has more to give than it had
        shutil.rmtree(work.output)
    raise AssertionError(f"{work.stage}: ended before it was killed, {TRIES} times")


def _records(folder: Path) -> int:
    return sum(len(pd.read_parquet(path)) for path in sorted(folder.glob("*.parquet")))


@pytest.mark.parametrize("name", list(MOMENTS))
def test_a_killed_stage_comes_to_the_same_bytes(name: str, graph: Path, tmp_path: Path, tell: Tell) -> None:
    work, whole, seconds = _whole(graph, name, tmp_path)
    moments, resumed, lost, different = [], 0, 0, 0
    for number in range(MOMENTS[name]):
        again = work.at(tmp_path / str(number))
        moments.append(_killed(again, seconds, number))
        resumed += "resumes at" in finish(again)
        lost += _records(whole) - _records(again.output)
        different += artifacts.digest(again.output) != artifacts.digest(whole)
        assert again.leftovers() == []
    at = " ".join(f"{moment:.1f}" for moment in moments)
    tell(
        f"kill {name}: {len(moments)} kills of {seconds:.1f} s of work (at {at} s), {resumed} resumed mid-way,"
        f" {different} differences, {lost} lost records"
    )
    assert (different, lost) == (0, 0)


def _publication(root: Path, registry: bytes, number: int, size: int) -> Work:
    """Return the publication of a candidate with so many numbers of weights, in a registry that is made if need be."""
    if not root.exists():
        root.mkdir()
        (root / "mlflow.db").write_bytes(registry)
    config = PublishConfig(
        registry=f"sqlite:///{root / 'mlflow.db'}", store=str(root / "releases"), model="restorer", licence="other"
    )
    ports = releases.candidate(root, number, passed=True, size=size)
    return Work("publish", config.model_dump(), ports, ports["release"], root / "c", {}, root)


def test_killed_publications_lose_and_double_no_version(tmp_path: Path, empty_registry: bytes, tell: Tell) -> None:
    """Each publication is killed once and repeated; another registry gets the same ones without a kill."""

    def seconds_of_times(times: int) -> float:
        trial = _publication(tmp_path / f"{times} times", empty_registry, 0, times * LARGE)
        finish(trial)
        return seconds_of(trial)

    size = LARGE * _enough(seconds_of_times) if SOAK else SMALL
    found, moments, seconds = {}, [], 0.0
    for place in ("whole", "killed"):
        root, digests = tmp_path / place, []
        for number in range(PUBLICATIONS):
            work = _publication(root, empty_registry, number, size)
            if place == "killed":
                moments.append(_killed(work, seconds, number))
            finish(work)
            seconds = seconds_of(work)
            assert seconds >= scaled(0.0, LEAST_SECONDS)
            digests.append(artifacts.read_json(work.output / "release.json")["digest"])
        found[place] = digests
        versions = Registry(f"sqlite:///{root / 'mlflow.db'}").versions("restorer")
        assert [(version.number, version.digest) for version in versions] == list(enumerate(digests, 1))
        for version in versions:
            version.store.check(version.digest)
        names = {path.name for path in (root / "releases").iterdir()}
        assert names == {*digests, "evidence"}
        assert [version.number for version in versions if version.aliases] == [PUBLICATIONS]
    at = " ".join(f"{moment:.1f}" for moment in moments)
    assert found["whole"] == found["killed"]
    tell(f"kill publish: {len(moments)} kills of {seconds:.1f} s of work (at {at} s), 0 lost or doubled versions")


WRITER = """
import sys
from support.votes import vote
from prefrestore.data.vote_store import append
for number in range(int(sys.argv[2]), 10**9):
    append(sys.argv[1], [vote(number)])
    print(number, flush=True)
"""


def test_a_vote_that_was_answered_outlives_the_process(tmp_path: Path, repository: Path, tell: Tell) -> None:
    """The writer says a number when that vote is kept; after each kill the next writer goes on."""
    told: list[int] = []
    for turn in range(VOTE_KILLS):
        start = (told[-1] if told else -1) + 1
        command = [sys.executable, "-c", WRITER, str(tmp_path / "votes"), str(start)]
        with subprocess.Popen(
            command, cwd=repository / "tests", env={**graphs.environment(repository), "PYTHONPATH": "."},
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            told.append(int(process.stdout.readline()))
            time.sleep(seeding.rng("kill", "votes", turn).random())
            process.send_signal(signal.SIGKILL)
            told += [int(line) for line in process.stdout.read().splitlines() if line]
    votes = read(tmp_path / "votes")
    kept = {row.digest_a for row in votes.judgements}
    lost = [number for number in told if vote(number).digest_a not in kept]
    tell(f"kill votes: {VOTE_KILLS} kills, {len(told)} votes answered, {len(lost)} lost, {len(votes.rejected)} damaged")
    assert lost == []
    assert votes.rejected == ()
    append(tmp_path / "votes", [vote(told[-1])])
    assert len(read(tmp_path / "votes").judgements) == len(votes.judgements)
