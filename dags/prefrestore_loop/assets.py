"""What the DAGs hand to each other: preferences -> challenger -> champion. Nothing is scheduled on the champion."""

from __future__ import annotations

from airflow.sdk import Asset, AssetWatcher

from prefrestore_loop.settings import settings
from prefrestore_loop.watch import PreferenceStoreTrigger

HOUR = 3600.0
_now = settings()

PREFERENCES = Asset(
    name="prefrestore_preferences",
    watchers=[
        AssetWatcher(
            name="vote_store",
            trigger=PreferenceStoreTrigger(
                store=_now.store,
                minimum=_now.minimum,
                max_wait=_now.max_wait_hours * HOUR,
                cooldown=_now.cooldown_hours * HOUR,
                per_day=_now.per_day,
                poll=_now.poll_seconds,
            ),
        )
    ],
)
CHALLENGER = Asset(name="prefrestore_challenger")
CHAMPION = Asset(name="prefrestore_champion")
