"""From pairs to a reward: candidates of a real, untrained restorer; judgements; training, resumption, figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prefrestore import artifacts
from prefrestore.config import (
    CollectPreferencesConfig,
    Config,
    SampleCandidatesConfig,
    TrainRewardConfig,
)
from prefrestore.configfile import load
from prefrestore.data.images import decode_png, encode_png
from prefrestore.data.pair_import import import_pairs
from prefrestore.data.pairs import PairSet, load_pairs, to_tensor
from prefrestore.data.preferences import read_judgements
from prefrestore.data.vote_store import append
from prefrestore.errors import UserError
from prefrestore.models.codec import build_codec
from prefrestore.models.tokenizer import ImageTokenizer
from prefrestore.reward_model.candidates import Origin, make_candidate, write_candidates
from prefrestore.reward_model.collect import JUDGEMENTS
from prefrestore.reward_model.dataset import build_scene, held_out_faces, load_candidates
from prefrestore.reward_model.imported import with_imported
from prefrestore.rewards.base import References
from prefrestore.rewards.composite import load_reward
from prefrestore.rewards.network import load_network
from prefrestore.rewards.preference import PreferenceReward
from prefrestore.runtime.checkpoint import Checkpoint, Checkpoints
from prefrestore.sft.pretrain import build_pipeline
from prefrestore.stage import STAGES, execute
from tests.support.clip import save_siglip

FACES, BLURS = 20, (0.4, 0.8, 1.2, 2.0)


@pytest.fixture(scope="module")
def preset(repository: Path) -> Config:
    return load(repository / "presets" / "smoke.yaml")


@pytest.fixture(scope="module")
def root(preset: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifacts faces, pairs and candidates; a candidate is HQ blurred more or less."""
    root = tmp_path_factory.mktemp("reward")
    ingest = preset.ingest.model_copy(update={"num_train": FACES, "num_eval": 2, "workers": 1})
    degrade = preset.degrade.model_copy(update={"variants": 1, "workers": 1})
    execute(STAGES["ingest"], ingest, {"faces": root / "faces"})
    execute(STAGES["degrade"], degrade, {name: root / name for name in ("faces", "pairs")})
    pairs = load_pairs(root / "pairs", "train")
    with artifacts.replacing(root / "candidates") as folder:
        write_candidates(
            folder,
            [
                make_candidate(face, 0, cv2.GaussianBlur(hq, (0, 0), blur), Origin(number, 4, "base"))
                for face, hq in zip(pairs.ids, pairs.hq, strict=True)
                for number, blur in enumerate(BLURS)
            ],
        )
        artifacts.write_manifest(folder, artifacts.Manifest("candidates", "sample_candidates", {}, {}))
    return root


@pytest.fixture(scope="module")
def collecting(preset: Config) -> CollectPreferencesConfig:
    simulated = preset.collect_preferences.simulated.model_copy(update={"pairs": 120, "doubled": 0.5})
    return preset.collect_preferences.model_copy(update={"simulated": simulated})


@pytest.fixture(scope="module")
def training(preset: Config) -> TrainRewardConfig:
    changes = {"steps": 60, "learning_rate": 0.003, "held_out": 0.25, "checkpoint_every": 20}
    return preset.train_reward.model_copy(
        update={**changes, "weights": {"preference": 1.0, "structure": 0.5}, "corrupted": 0.25}
    )


def run_stage(name: str, config: Any, root: Path, output: Path) -> Path:
    row = STAGES[name]
    execute(row, config, {**{port: root / port for port in row.inputs}, row.outputs[0]: output})
    return output


@pytest.fixture(scope="module")
def preferences(root: Path, collecting: CollectPreferencesConfig) -> Path:
    return run_stage("collect_preferences", collecting, root, root / "preferences")


@pytest.fixture(scope="module")
def reward(
    root: Path, preferences: Path, training: TrainRewardConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    assert preferences.is_dir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFRESTORE_CHECKPOINTS", str(tmp_path_factory.mktemp("checkpoints")))
        return run_stage("train_reward", training, root, root / "reward")


@pytest.fixture(scope="module")
def restorer(preset: Config, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose base is an untrained restorer of the smoke preset."""
    sizes = preset.train_codec.tokenizer
    tokens = (sizes.image_size, sizes.patch_size, sizes.hidden_size, sizes.layers, sizes.heads)
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(*tokens, sizes.codebook_size, sizes.code_dim, -1)
    pairs = load_pairs(root / "pairs", "train")
    folder = tmp_path_factory.mktemp("restorer")
    (folder / "pairs").symlink_to(root / "pairs")
    codec = build_codec(preset.train_codec).eval()
    build_pipeline(preset.pretrain, codec, tokenizer.eval(), pairs).save_pretrained(folder / "base")
    artifacts.write_manifest(folder / "base", artifacts.Manifest("base", "pretrain", {}, {}))
    return folder


def sampling(preset: Config, **changes: Any) -> SampleCandidatesConfig:
    return preset.sample_candidates.model_copy(
        update={"num_faces": 4, "samples": 2, "step_counts": (1, 2), "batch_size": 4, **changes}
    )


def test_candidates_differ_by_seed_and_steps_and_do_not_depend_on_the_batch(
    preset: Config, restorer: Path, tmp_path: Path
) -> None:
    folders = [
        run_stage("sample_candidates", sampling(preset, batch_size=size), restorer, tmp_path / str(number))
        for number, size in enumerate((4, 4, 8))
    ]
    table, again, other = (pq.read_table(folder / "candidates.parquet").to_pandas() for folder in folders)
    assert artifacts.digest(folders[0]) == artifacts.digest(folders[1])
    assert len(table) == table["sha256"].nunique() == table["seed"].nunique() == 16
    assert table["face_id"].nunique() == 4
    assert set(table["num_steps"]) == {1, 2}
    assert (table["group_id"] == table["face_id"] + "/" + table["variant"].astype(str)).all()
    assert table["candidate_id"].equals(again["candidate_id"])
    assert table["candidate_id"].equals(other["candidate_id"])
    images, batched = (load_candidates(folders[k]).images.astype(int) for k in (0, 2))
    assert np.abs(images - batched).max() <= 1


def test_several_checkpoints_give_candidates_of_their_own(preset: Config, restorer: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(restorer / "base", other)
    (other / "note.txt").write_text("another version\n")
    config = sampling(preset, num_faces=2, samples=1, checkpoints=(str(other),))
    folder = run_stage("sample_candidates", config, restorer, tmp_path / "candidates")
    table = pq.read_table(folder / "candidates.parquet").to_pandas()
    assert table.groupby("model").size().tolist() == [4, 4]
    assert table["candidate_id"].is_unique
    assert table["sha256"].nunique() == 8
    assert (table.groupby("group_id")["model"].nunique() == 2).all()
    inputs = pq.read_table(folder / "inputs.parquet").to_pylist()
    assert {row["group_id"] for row in inputs} == set(table["group_id"])
    pairs = load_pairs(restorer / "pairs", "train")
    face, _, variant = inputs[0]["group_id"].rpartition("/")
    assert np.array_equal(decode_png(inputs[0]["image"]), pairs.lq[pairs.ids.index(face), int(variant)])
    nothing = config.model_copy(update={"checkpoints": (str(tmp_path),)})
    with pytest.raises(UserError, match="holds no policy, release or base"):
        run_stage("sample_candidates", nothing, restorer, tmp_path / "no")


def test_more_faces_than_there_are_is_the_users_mistake(preset: Config, restorer: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_faces"):
        run_stage("sample_candidates", sampling(preset, num_faces=99), restorer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_simulated_judgements_are_marked_and_hold_nothing_volatile(
    root: Path, preferences: Path, collecting: CollectPreferencesConfig, tmp_path: Path
) -> None:
    rows = read_judgements(preferences / JUDGEMENTS)
    assert {row.source for row in rows} == {"simulated"}
    assert {row.time for row in rows} == {"2000-01-01T00:00:00Z"}
    schools = ("", "validation-", "test-")
    assert {row.annotator for row in rows} == {f"simulated-{school}{k}" for school in schools for k in range(3)}
    summary = artifacts.read_json(preferences / "summary.json")
    assert summary["pairs"] == 120 < summary["judgements"] == len(rows) < 240
    assert summary["agreement"]["share"] > 0.6
    assert summary["rejected"] == []
    again = run_stage("collect_preferences", collecting, root, tmp_path / "again")
    assert artifacts.digest(again) == artifacts.digest(preferences)


def test_sharper_candidates_win(root: Path, preferences: Path) -> None:
    drawn = load_candidates(root / "candidates")
    blur = {digest: BLURS[seed] for digest, seed in zip(drawn.digests, drawn.seeds, strict=True)}
    decided = [row for row in read_judgements(preferences / JUDGEMENTS) if row.choice in "ab"]
    right = [(row.choice == "a") == (blur[row.digest_a] < blur[row.digest_b]) for row in decided]
    assert np.mean(right) > 0.85


def test_votes_of_people_are_merged_and_bad_ones_named(
    root: Path, preferences: Path, collecting: CollectPreferencesConfig, tmp_path: Path
) -> None:
    example = read_judgements(preferences / JUDGEMENTS)[0]
    human = replace(example, source="human", annotator="ann", time="2026-01-02T03:04:05Z")
    append(tmp_path / "votes", [human, replace(human, lq_id="nobody/0", annotator="bob")])
    config = collecting.model_copy(update={"votes": str(tmp_path / "votes")})
    merged = run_stage("collect_preferences", config, root, tmp_path / "merged")
    summary = artifacts.read_json(merged / "summary.json")
    assert summary["sources"]["human"] == 1
    assert [row["reason"][13:] for row in summary["rejected"]] == ["is not among the candidates of nobody/0"]
    only = config.model_copy(update={"simulated": collecting.simulated.model_copy(update={"pairs": 0})})
    alone = run_stage("collect_preferences", only, root, tmp_path / "alone")
    assert read_judgements(alone / JUDGEMENTS) == [human]


def test_no_judgement_at_all_is_the_users_mistake(
    root: Path, collecting: CollectPreferencesConfig, tmp_path: Path
) -> None:
    nothing = collecting.model_copy(update={"simulated": collecting.simulated.model_copy(update={"pairs": 0})})
    with pytest.raises(UserError, match="no judgement is left"):
        run_stage("collect_preferences", nothing, root, tmp_path / "out")


def test_the_reward_learns_on_faces_it_never_saw(reward: Path) -> None:
    figures = artifacts.read_json(reward / "accuracy.json")
    assert figures["judges"]["reward"]["accuracy"] > 0.7
    assert figures["judges"]["oracle"]["accuracy"] >= figures["judges"]["reward"]["accuracy"] - 0.1
    assert figures["held_out_faces"] == 3
    assert set(figures["sensitivity"]) == {"blur", "jpeg", "colour_shift", "noise", "identity_swap"}
    assert figures["sensitivity"]["blur"]["share_lower"] > 0.7
    assert figures["agreement"]["psnr"]["accuracy"] > 0.7  # the candidates are more or less blurred
    assert figures["agreement"]["psnr"]["pairs"] <= figures["judges"]["psnr"]["pairs"]
    history = artifacts.read_json(reward / "history.json")
    assert [row["step"] for row in history] == list(range(1, 61))
    assert np.mean([row["loss"] for row in history[-10:]]) < np.mean([row["loss"] for row in history[:10]])


def test_the_stage_trains_heads_on_a_frozen_backbone(
    root: Path, preferences: Path, training: TrainRewardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preferences.is_dir()
    monkeypatch.setenv("PREFRESTORE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    backbone = save_siglip(tmp_path / "siglip")
    config = training.model_copy(update={"backbone": str(backbone), "steps": 20, "weights": {"preference": 1.0}})
    trained = run_stage("train_reward", config, root, tmp_path / "reward")
    assert not any("siglip" in path.name for path in trained.rglob("*"))
    pairs = load_pairs(root / "pairs", "train")
    images = to_tensor(pairs.hq[:4])
    with load_reward(trained) as composite:
        assert composite.parts(images, references(pairs, None))["preference"].isfinite().all()


def test_the_reward_sees_lq_and_candidate_but_never_hq(root: Path, reward: Path) -> None:
    pairs = load_pairs(root / "pairs", "train")
    images = to_tensor(pairs.hq[:4])
    with load_reward(reward) as composite:
        assert set(composite.statistics) == {"preference", "structure"}
        parts = composite.parts(images, references(pairs, to_tensor(pairs.hq[:4])))
        blind = composite.parts(images, references(pairs, None))
        other = composite.parts(images, replace(references(pairs, None), lq=to_tensor(pairs.lq[4:8, 0])))
    assert torch.equal(parts["preference"], blind["preference"])
    assert not torch.equal(parts["preference"], other["preference"])
    assert blind["structure"].isnan().all()
    assert composite.totals(parts).isfinite().all()


def test_zero_preference_is_the_mean_of_the_candidates(root: Path, reward: Path) -> None:
    drawn = load_candidates(root / "candidates")
    scene = build_scene(load_pairs(root / "pairs", "train"), drawn.groups)
    everything = scene.references(np.arange(len(drawn.groups)))
    scores = PreferenceReward(load_network(reward)).score(to_tensor(drawn.images), everything)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scores.std()) > 0.1


def references(pairs: PairSet, hq: torch.Tensor | None) -> References:
    return References(to_tensor(pairs.lq[:4, 0]), hq, pairs.captions[:4], pairs.landmarks[:4], pairs.ids[:4])


class KilledError(Exception):
    pass


def test_a_run_killed_after_a_checkpoint_ends_in_the_same_bytes(
    root: Path, reward: Path, training: TrainRewardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFRESTORE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    save = Checkpoints.save

    def save_then_die(self: Checkpoints, checkpoint: Checkpoint) -> None:
        save(self, checkpoint)
        if checkpoint.step == 40:
            raise KilledError

    monkeypatch.setattr(Checkpoints, "save", save_then_die)
    with pytest.raises(KilledError):
        run_stage("train_reward", training, root, tmp_path / "reward")
    assert not (tmp_path / "reward").exists()
    monkeypatch.setattr(Checkpoints, "save", save)
    resumed = run_stage("train_reward", training, root, tmp_path / "reward")
    assert artifacts.digest(resumed) == artifacts.digest(reward)


def test_an_unknown_reward_is_the_users_mistake(root: Path, reward: Path, tmp_path: Path) -> None:
    assert reward.is_dir()
    config = artifacts.read_json(reward / "composite.json")
    config["parts"]["beauty"] = config["parts"]["structure"]
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((reward / name).read_bytes())
    (tmp_path / "composite.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no reward is called 'beauty'"):
        load_reward(tmp_path)
    with pytest.raises(UserError, match="holds no reward"):
        load_reward(root)


def test_the_scene_and_the_split_go_by_face(root: Path, training: TrainRewardConfig) -> None:
    drawn = load_candidates(root / "candidates")
    pairs = load_pairs(root / "pairs", "train")
    scene = build_scene(pairs, drawn.groups)
    row = drawn.groups.index(f"{pairs.ids[3]}/0")
    assert torch.equal(scene.hq[row], to_tensor(pairs.hq[3]))
    assert len(held_out_faces(drawn.groups, training)) == 5
    assert held_out_faces(drawn.groups[::-1], training) == held_out_faces(drawn.groups, training)
    with pytest.raises(UserError, match="not among the training pairs"):
        build_scene(pairs, ["nobody/0"])


@pytest.mark.parametrize("texts", [["", ""], ["a man with glasses", ""], ["", "a man with glasses"]])
def test_texts_may_be_empty_and_do_not_leak_into_their_neighbours(reward: Path, texts: Sequence[str]) -> None:
    network = load_network(reward)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = network(images, images, texts)
    apart = torch.cat([network(images[k : k + 1], images[k : k + 1], texts[k : k + 1]) for k in (0, 1)], dim=1)
    torch.testing.assert_close(together, apart)


def test_imported_pairs_train_with_our_own_and_have_no_hq(
    root: Path,
    collecting: CollectPreferencesConfig,
    training: TrainRewardConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFRESTORE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    random = np.random.default_rng(0)
    rows = []
    for number in range(3):
        for name in ("lq", "chosen", "rejected"):
            picture = random.integers(0, 255, (48, 48, 3), np.uint8)
            (tmp_path / f"{name}{number}.png").write_bytes(encode_png(picture))
        rows.append({name: f"{name}{number}.png" for name in ("lq", "chosen", "rejected")})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_pairs(tmp_path / "pairs.jsonl", tmp_path / "votes", "public")
    config = collecting.model_copy(update={"votes": str(tmp_path / "votes")})
    merged = run_stage("collect_preferences", config, root, tmp_path / "preferences")
    assert artifacts.read_json(merged / "summary.json")["sources"]["import"] == 3
    drawn = load_candidates(root / "candidates")
    scene = build_scene(load_pairs(root / "pairs", "train"), drawn.groups)
    everything, whole = with_imported(drawn, scene, merged)
    assert len(everything.groups) == len(whole.ids) == len(drawn.groups) + 6
    assert everything.images.shape[1:] == (32, 32, 3)
    assert whole.hq[-6:].isnan().all()
    for name in ("pairs", "candidates"):
        (tmp_path / name).symlink_to(root / name)
    short = training.model_copy(update={"steps": 4})
    reward = run_stage("train_reward", short, tmp_path, tmp_path / "reward")
    assert np.isfinite(artifacts.read_json(reward / "accuracy.json")["judges"]["reward"]["accuracy"])


def test_judges_share_neither_faces_nor_oracle_nor_weights(preferences: Path, reward: Path) -> None:
    roles = artifacts.read_json(preferences / "roles.json")
    faces = {role: {face for face, own in roles.items() if own == role} for role in ("validation", "test")}
    assert len(faces["validation"]) == len(faces["test"]) == 5
    for row in read_judgements(preferences / JUDGEMENTS):
        role = roles.get(row.lq_id.rpartition("/")[0], "")
        assert row.annotator.startswith(f"simulated-{role}") or not role
        assert role or row.annotator.removeprefix("simulated-").isdigit()
    table = pq.read_table(preferences / "qualities.parquet").to_pandas()
    columns = ["utility", "utility_validation", "utility_test"]
    assert (table[columns].corr().to_numpy()[np.triu_indices(3, 1)] < 0.999).all()
    networks = [load_network(folder) for folder in (reward, reward / "validation", reward / "test")]
    assert [network.config.members for network in networks] == [2, 1, 1]
    stems = [network.members[0].stem.weight for network in networks]
    assert not torch.equal(stems[0], stems[1])
    assert not torch.equal(stems[1], stems[2])
    beside = artifacts.read_json(reward / "accuracy.json")["beside"]
    assert set(beside) == {"validation", "test"}
    assert beside["test"]["judges"]["oracle"]["accuracy"] > 0.6


def test_alignment_and_reward_do_without_the_test_judge(root: Path, reward: Path, tmp_path: Path) -> None:
    copy = tmp_path / "reward"
    shutil.copytree(reward, copy)
    shutil.rmtree(copy / "test")
    pairs = load_pairs(root / "pairs", "train")
    images = to_tensor(pairs.hq[:4])
    with load_reward(reward, judge="validation") as whole, load_reward(copy, judge="validation") as without:
        assert whole.judge is not None
        assert without.judge is not None
        scores = [one.judge.score(images, references(pairs, None)) for one in (whole, without) if one.judge]
        assert set(whole.statistics) == {"preference", "structure"}
    assert torch.equal(scores[0], scores[1])
    with load_reward(copy, judge="test") as nobody, load_reward(reward) as silent:
        assert nobody.judge is None
        assert silent.judge is None


def copy_of(root: Path, tmp_path: Path, name: str) -> Path:
    """A root whose artifact ``name`` may be spoilt."""
    copy = tmp_path / "root"
    copy.mkdir()
    for port in ("pairs", "candidates", "preferences"):
        if port == name:
            shutil.copytree(root / port, copy / port)
        else:
            (copy / port).symlink_to(root / port)
    return copy


@pytest.mark.parametrize(
    ("artifact", "name", "content", "message"),
    [
        ("preferences", "roles.json", None, "roles.json: is missing: run the stage that writes preferences"),
        ("preferences", "roles.json", b"{", "roles.json: is damaged"),
        ("preferences", "roles.json", b"7", "roles.json: is damaged"),
        ("preferences", "roles.json", b'{"face": "jury"}', "no judge is called 'jury'"),
        ("preferences", "preferences.parquet", None, "preferences.parquet: is missing"),
        ("preferences", "preferences.parquet", b"PAR1", "preferences.parquet: is damaged or of another kind"),
        ("preferences", "qualities.parquet", b"", "qualities.parquet: is damaged"),
        ("preferences", "imported.parquet", b"nothing", "imported.parquet: is damaged"),
        ("candidates", "candidates.parquet", None, "candidates.parquet: is missing"),
        ("candidates", "candidates.parquet", b"PAR1PAR1", "candidates.parquet: is damaged"),
    ],
)
def test_missing_and_foreign_files_are_one_line(  # noqa: PLR0913 (fixtures and the case)
    root: Path,
    preferences: Path,
    training: TrainRewardConfig,
    tmp_path: Path,
    artifact: str,
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    assert preferences.is_dir()
    copy = copy_of(root, tmp_path, artifact)
    if content is None:
        (copy / artifact / name).unlink()
    else:
        (copy / artifact / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        run_stage("train_reward", training, copy, tmp_path / "reward")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "reward").exists()


def test_judgements_on_other_candidates_are_one_line(
    root: Path, preferences: Path, training: TrainRewardConfig, tmp_path: Path
) -> None:
    assert preferences.is_dir()
    copy = copy_of(root, tmp_path, "candidates")
    table = pq.read_table(copy / "candidates" / "candidates.parquet")
    pq.write_table(table.slice(8), copy / "candidates" / "candidates.parquet")
    with pytest.raises(UserError, match="is not among these candidates: run collect_preferences on them"):
        run_stage("train_reward", training, copy, tmp_path / "reward")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("composite.json", None, "holds no reward"),
        ("composite.json", b"[]", "composite.json: is damaged"),
        ("model.safetensors", None, "holds no reward network"),
        ("model.safetensors", b"short", "its reward network is damaged"),
        ("config.json", b'{"width": 8}', "its reward network is damaged"),
        ("validation/model.safetensors", None, "validation: holds no reward network"),
    ],
)
def test_a_reward_with_missing_and_foreign_files_is_one_line(
    reward: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    copy = tmp_path / "reward"
    shutil.copytree(reward, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_reward(copy, judge="validation")
