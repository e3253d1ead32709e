"""What can go wrong with a run, sorted by what should be done about it."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowException


class KubeflowError(AirflowException):
    """Anything below; its message is one line."""


class KubeflowUserError(KubeflowError):
    """A person must mend it: connection, token, name of a pipeline or version, parameters."""


class KubeflowUnavailableError(KubeflowError):
    """The server does not answer, cuts the connection or answers 5xx: later it may."""


class KubeflowRunFailedError(KubeflowError):
    """A step of the run failed by itself: the same again fails again."""


class KubeflowRunPreemptedError(KubeflowError):
    """The run lost its machines: another try goes on from its checkpoints."""


class KubeflowRunCanceledError(KubeflowError):
    """Somebody ended the run."""


def retry_policy(delay: timedelta = timedelta(minutes=2)) -> ExceptionRetryPolicy:
    """Return the policy: lost machines and networks are tried again, as often as ``retries`` says; all else is final.

    Args:
        delay: before the next try.
    """
    again = [KubeflowUnavailableError, KubeflowRunPreemptedError]
    return ExceptionRetryPolicy(
        [
            RetryRule(again, RetryAction.RETRY, delay, "network or machines were lost"),
            RetryRule(KubeflowError, RetryAction.FAIL, reason="another try would fail in the same way"),
        ]
    )
