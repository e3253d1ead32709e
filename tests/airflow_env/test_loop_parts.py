"""The loop's own parts with Airflow's classes, against a program that answers from a table."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from prefrestore_loop import tasks, watch
from prefrestore_loop.alerts import Alert, tell
from prefrestore_loop.assets import CHALLENGER, CHAMPION, PREFERENCES
from prefrestore_loop.program import ProgramCrashedError, ProgramRefusedError, last_json, program
from prefrestore_loop.watch import PreferenceStoreTrigger, StoreError, digest_of_listing

VERDICT = {
    "sentence": "Passed: all 1 required rules hold.",
    "comparisons": [{"metric": "psnr", "against": "base", "gain": 0.25, "outcome": "better"}],
}
SHOWN = {
    "model": "m",
    "number": 2,
    "digest": "d2",
    "report": "s3://b/d2/report/report.html",
    "page": "http://mlflow/#/models/m/versions/2",
    "verdict": VERDICT,
    "champion": 1,
    "previous": None,
}
DECISION = {"who": "rita", "why": ""}


def outlets() -> Any:
    return defaultdict(lambda: SimpleNamespace(extra=None))


# --- program ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{\n "a": 1\n}\n', {"a": 1}),
        ('step\n{"a": 1}\n', {"a": 1}),
        ('{"a": 1}\nnull\n', {"a": 1}),
        ("", None),
        ("[1]", None),
    ],
)
def test_json_is_found_in_the_output(text: str, value: Any) -> None:
    assert last_json(text) == value


def test_what_the_program_refuses_is_told_from_a_crash(stand_in: Any) -> None:
    stand_in.answer(a={"code": 2, "message": "mend it"}, b={"code": 1, "message": "Boom"}, c={})
    with pytest.raises(ProgramRefusedError, match="^mend it$"):
        program().call("a")
    with pytest.raises(ProgramCrashedError, match="exit code 1: Boom"):
        program().call("b")
    with pytest.raises(ProgramCrashedError, match="printed no JSON"):
        program().call("c")
    stand_in.path.unlink()
    with pytest.raises(ProgramRefusedError, match="No such file or directory: mend program or folder"):
        program().call("a")


# --- decisions ---------------------------------------------------------------------------------


def test_a_promotion_says_who_why_and_against_which_champion(stand_in: Any) -> None:
    stand_in.answer(model_show={"value": SHOWN}, model_promote={"value": {"champion": 2, "previous": 1}})
    events = outlets()
    tasks.promote(tasks.look_at(2), DECISION, outlet_events=events)
    why = ["--why", "approved in Airflow", "--who", "rita", "--json"]
    assert stand_in.asked[-1] == ["model", "promote", "2", *why, "--expect", "1"]
    assert events[CHAMPION].extra == {"model": "m", "version": 2, "previous": 1}


def test_a_promotion_that_was_done_is_not_done_again(stand_in: Any) -> None:
    """The worker died after the registry had moved."""
    stand_in.answer(model_show={"value": {**SHOWN, "champion": 2, "previous": 1}})
    events = outlets()
    tasks.promote(SHOWN, DECISION, outlet_events=events)
    assert {words[1] for words in stand_in.asked} == {"show"}
    assert events[CHAMPION].extra["version"] == 2


def test_a_rejection_is_recorded(stand_in: Any) -> None:
    stand_in.answer(model_reject={"value": {"champion": 1, "previous": None}})
    tasks.reject(SHOWN, {"who": "rita", "why": "too smooth"})
    assert stand_in.asked == [["model", "reject", "2", "--why", "too smooth", "--who", "rita", "--json"]]


def test_the_page_shows_verdict_links_and_gains() -> None:
    text = tasks.body_of(SHOWN)
    for part in (VERDICT["sentence"], SHOWN["report"], SHOWN["page"], "version 1", "| psnr | base | +0.25 | better |"):
        assert part in text


def test_a_champion_is_not_asked_about(stand_in: Any) -> None:
    stand_in.answer(model_show={"value": {**SHOWN, "champion": 2}})
    with pytest.raises(AirflowSkipException, match="champion already"):
        tasks.look_at(2)


def test_a_challenger_is_announced_once(stand_in: Any) -> None:
    row = {"number": 2, "digest": "d2", "aliases": ["challenger"]}
    stand_in.answer(model_list={"value": {"model": "m", "versions": [row]}})
    events = outlets()
    tasks.announce_challenger("r", inlet_events={CHALLENGER: []}, outlet_events=events)
    assert events[CHALLENGER].extra == {"model": "m", "version": 2, "digest": "d2", "run": "r"}
    seen = [SimpleNamespace(extra={"digest": "d2"})]
    with pytest.raises(AirflowSkipException):
        tasks.announce_challenger("r", inlet_events={CHALLENGER: seen}, outlet_events=outlets())


def test_bad_shards_are_told_and_the_rest_is_used(stand_in: Any, webhook: Any) -> None:
    checks = [{"name": "every shard can be read", "success": False, "rows": ["part-x: damaged"]}]
    stand_in.answer(prefs_validate={"code": 2, "value": {"checks": checks}}, prefs_stats={"value": {"valid": 5}})
    event = SimpleNamespace(extra={"payload": {"watermark": "w"}})
    found = tasks.check_preferences("votes", {PREFERENCES: [event]})
    assert found == {"watermark": "w", "valid": 5, "set_aside": 1}
    assert "part-x: damaged" in webhook.lines[0]


def test_an_alert_tells_of_every_context(webhook: Any) -> None:
    """One notifier stands for all tasks of a DAG."""
    alert = Alert("{{ what }} failed")
    for what in ("a", "b"):
        alert({"what": what})
    asyncio.run(_awaited(Alert("{{ what }} is late", context={"what": "c"})))
    assert webhook.lines == ["a failed", "b failed", "c is late"]


async def _awaited(alert: Alert) -> None:
    await alert


def test_a_webhook_that_fails_fails_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    secret = {"conn_type": "http", "password": "http://127.0.0.1:9/secret"}
    monkeypatch.setenv("AIRFLOW_CONN_PREFRESTORE_WEBHOOK", json.dumps(secret))
    tell("something")
    assert "the webhook of connection 'prefrestore_webhook' does not take it (ConnectError)" in caplog.text
    assert "/secret" not in caplog.text


# --- watching ----------------------------------------------------------------------------------


class Store:
    """An asset's state store."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def aget(self, key: str) -> Any:
        return self.values.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = value


def _trigger(store: Path, state: Store, **changes: Any) -> PreferenceStoreTrigger:
    arguments = {"store": str(store), "minimum": 3, "max_wait": 3600, "cooldown": 0, "per_day": 9, "poll": 0.02}
    trigger = PreferenceStoreTrigger(**{**arguments, **changes})
    trigger.asset_state_store = state
    return trigger


def _events(trigger: PreferenceStoreTrigger, seconds: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def collect() -> None:
        async for event in trigger.run():
            found.append(event.payload)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(collect(), seconds))
    return found


@pytest.fixture
def votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with one file."""
    monkeypatch.setattr(watch, "HANDED_OVER", 0.05)
    (tmp_path / "votes").mkdir()
    (tmp_path / "votes" / "shard").touch()
    return tmp_path / "votes"


def _stats(valid: int) -> dict[str, Any]:
    return {"value": {"valid": valid, "judgements": valid, "shards": 1, "set_aside": []}}


def test_an_event_is_given_once_and_the_watermark_outlives_the_trigger(votes: Path, stand_in: Any) -> None:
    stand_in.answer(prefs_stats=_stats(3))
    state = Store()
    (event,) = _events(_trigger(votes, state), 2)
    assert (event["new"], event["watermark"]) == (3, digest_of_listing(str(votes)))
    assert _events(_trigger(votes, state), 2) == []
    assert len(stand_in.asked) == 2  # once per trigger: an unchanged listing is not counted again


def test_too_few_give_none_until_the_wait_is_over(votes: Path, stand_in: Any) -> None:
    stand_in.answer(prefs_stats=_stats(2))
    assert _events(_trigger(votes, Store()), 1.5) == []
    assert len(_events(_trigger(votes, Store(), max_wait=0.3), 2)) == 1


def test_an_unreadable_store_is_told_once(votes: Path, stand_in: Any, webhook: Any) -> None:
    assert _events(_trigger(votes / "none", Store()), 2) == []
    assert len(webhook.lines) == 1
    assert "is no folder: mend PREFRESTORE_LOOP_STORE" in webhook.lines[0]
    assert stand_in.asked == []


def test_s3_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match="S3 cannot be listed") as caught:
        digest_of_listing("s3://bucket/prefix")
    assert "\n" not in str(caught.value)


def test_the_trigger_comes_back_from_its_arguments(votes: Path) -> None:
    path, arguments = _trigger(votes, Store()).serialize()
    assert path == "prefrestore_loop.watch.PreferenceStoreTrigger"
    assert PreferenceStoreTrigger(**arguments).serialize() == (path, arguments)
