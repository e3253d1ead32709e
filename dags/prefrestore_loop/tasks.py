"""Bodies of the DAGs' tasks: each asks the program and says what came out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import HITLBranchOperator
from airflow.sdk.definitions.context import Context
from airflow.sdk.exceptions import AirflowSkipException

from prefrestore_loop.alerts import tell
from prefrestore_loop.assets import CHALLENGER, CHAMPION, PREFERENCES
from prefrestore_loop.program import REFUSED, ProgramRefusedError, accepted, ended_well, program

log = logging.getLogger(__name__)


def check_preferences(store: str, triggering_asset_events: Any = None) -> dict[str, Any]:
    """Check the store with Great Expectations, alert about what is set aside, and return what starts the alignment.

    Raises:
        ProgramRefusedError: the store cannot be read, or holds no valid judgement.
    """
    arguments = ("prefs", "validate", store, "--json")
    checked = program().ask(*arguments)
    # refused with a table of checks: some rows are bad, which is no reason to stop
    found = checked.value if checked.code == REFUSED and checked.value else accepted(checked, arguments)
    failed = [row for row in found["checks"] if not row["success"]]
    if failed:
        named = "; ".join(f"{row['name']}: {', '.join(row['rows'])}" for row in failed)
        tell(f"preferences in {store}: set aside, the rest is used: {named:.600}")
    figures = program().call("prefs", "stats", store, "--json")
    if not figures["valid"]:
        raise ProgramRefusedError(f"{store}: holds no valid judgement")
    events = list((triggering_asset_events or {}).get(PREFERENCES, ()))
    payload = ((events[-1].extra or {}) if events else {}).get("payload", {})
    return {"watermark": payload.get("watermark", ""), "valid": figures["valid"], "set_aside": len(failed)}


def announce_challenger(run: str, *, inlet_events: Any, outlet_events: Any) -> dict[str, Any]:
    """Emit the asset ``challenger`` if a run published one that was not announced before.

    Raises:
        AirflowSkipException: it did not: the gate did not pass.
    """
    found = program().call("model", "list", "--json")
    challengers = [row for row in found["versions"] if "challenger" in row["aliases"]]
    announced = [(event.extra or {}).get("digest") for event in inlet_events[CHALLENGER]]
    if not challengers or challengers[-1]["digest"] in announced:
        tell(f"{found['model']}: run {run} published no challenger: its gate did not pass; see the report in MLflow")
        raise AirflowSkipException("no new challenger")
    version = challengers[-1]
    extra = {"model": found["model"], "version": version["number"], "digest": version["digest"], "run": run}
    outlet_events[CHALLENGER].extra = extra
    return extra


def look_at(version: int | None, triggering_asset_events: Any = None) -> dict[str, Any]:
    """Return what a person needs to decide about a version: of the form, of the event, or the challenger.

    Raises:
        AirflowSkipException: there is none, or it serves already.
    """
    events = list((triggering_asset_events or {}).get(CHALLENGER, ()))
    if version is None and events:
        version = int((events[-1].extra or {})["version"])
    if version is None:
        rows = program().call("model", "list", "--json")["versions"]
        version = next((row["number"] for row in rows if "challenger" in row["aliases"]), None)
    if version is None:
        raise AirflowSkipException("there is no challenger")
    found = program().call("model", "show", str(version), "--json")
    if found["champion"] == version:
        raise AirflowSkipException(f"version {version} is champion already")
    return {**found, "text": body_of(found)}


def body_of(found: dict[str, Any]) -> str:
    """Return the approval page's text, in Markdown."""
    verdict = found["verdict"]
    rows = [
        f"| {row['metric']} | {row['against']} | {row['gain']:+.4g} | {row['outcome']} |"
        for row in verdict.get("comparisons", ())
        if row.get("gain") is not None and "outcome" in row
    ]
    table = ["| metric | against | gain | outcome |", "|---|---|---|---|", *rows] if rows else []
    links = [f"Report: {found['report']}", *([f"[Version in MLflow]({found['page']})"] if found["page"] else [])]
    head = f"**{verdict['sentence']}**"
    serves = f"Champion now: version {found['champion'] or 'none'}; previous: {found['previous'] or 'none'}."
    return "\n\n".join([head, serves, *links, "\n".join(table)]).strip()


class DecisionOperator(HITLBranchOperator):
    """Waits for a person and keeps who decided and why, for the audit log."""

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Take the answer."""
        user = event.get("responded_by_user") or {}
        why = str((event.get("params_input") or {}).get("why") or "").strip()
        who = str(user.get("name") or user.get("id") or "airflow")
        context["ti"].xcom_push(key="decision", value={"who": who, "why": why})
        return super().execute_complete(context, event)


def promote(found: dict[str, Any], decision: dict[str, str], *, outlet_events: Any) -> dict[str, Any]:
    """Make the version the champion and emit the asset ``champion``; done before, it is not done again."""
    number = found["number"]
    state = {key: program().call("model", "show", str(number), "--json")[key] for key in ("champion", "previous")}
    if state["champion"] != number:
        expected = ("--expect", str(found["champion"])) if found["champion"] else ()
        state = program().call("model", "promote", str(number), *_decision(decision, "approved"), *expected)
    return _crowned(found["model"], state, outlet_events)


def reject(found: dict[str, Any], decision: dict[str, str]) -> dict[str, Any]:
    """Record that the version is not wanted."""
    return program().call("model", "reject", str(found["number"]), *_decision(decision, "rejected"))


def rollback(why: str, who: str, *, outlet_events: Any) -> dict[str, Any]:
    """Go back to the previous champion and emit the asset ``champion``."""
    state = program().call("model", "rollback", *_decision({"who": who, "why": why}, "rolled back"))
    return _crowned(state["model"], state, outlet_events)


def _decision(decision: dict[str, str], done: str) -> tuple[str, ...]:
    return "--why", decision["why"] or f"{done} in Airflow", "--who", decision["who"], "--json"


def _crowned(model: str, state: dict[str, Any], outlet_events: Any) -> dict[str, Any]:
    extra = {"model": model, "version": state["champion"], "previous": state["previous"]}
    outlet_events[CHAMPION].extra = extra
    return extra


def measure_champion(data: str, label: str) -> str:
    """Measure the champion on fresh photographs and return the folder of the evaluation.

    Raises:
        AirflowSkipException: there is no champion, or no fresh data is named.
    """
    found = program().call("model", "list", "--json")
    if not data or not any("champion" in row["aliases"] for row in found["versions"]):
        raise AirflowSkipException("no champion" if data else "no fresh data: set PREFRESTORE_LOOP_FRESH_DATA")
    out = str(Path("runs") / "drift" / label)
    arguments = ("evaluate", "--model", f"models:/{found['model']}@champion", "--data", data, "--out", out)
    ended_well(program().ask(*arguments), arguments)
    return out


def judge_drift(evaluation: str) -> dict[str, Any]:
    """Compare the evaluation with the champion's own at its release; alert if a metric is surely worse."""
    found = program().call("model", "drift", evaluation, "--json")
    if found["worse"]:
        rows = {row["metric"]: row for row in found["metrics"]}
        told = ", ".join(f"{name} {rows[name]['released']:.4g} -> {rows[name]['now']:.4g}" for name in found["worse"])
        tell(f"{found['version']} drifts on fresh data: {told}")
    return found
