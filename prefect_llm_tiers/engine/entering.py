"""Entering a step run: what its first entry stored, held against what is here now."""

from prefect_llm_tiers.core.runs import Entry, StepRun
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.errors import AccountChanged, DeadlineInfeasible, InputChanged
from prefect_llm_tiers.planning.plan import show_span

__all__ = ["enter"]


def enter(job: Job, ports: Ports) -> tuple[Entry, StepRun]:
    """Find or make the step run; return what this process brings, and the run as the ledger holds it.

    Raises:
        DeadlineInfeasible: The deadline is past at the first entry.
        AccountChanged: The key belongs to another account than that of the first entry.
        InputChanged: The requests are not those of the first entry, and `on_input_change` is `raise`.
    """
    ledger, clock = ports.ledger, ports.clock
    now = clock.now()
    deadline = min((bound for bound in (job.deadline, job.due) if bound is not None), default=None)
    if deadline is not None and deadline <= now and job.infeasible == "raise" and not ledger.step_run(job.id):
        msg = (
            f"Step {job.step!r} was due at {deadline:%Y-%m-%d %H:%M}Z, {show_span(now - deadline)} before it "
            "was first entered. Nothing was sent. Move the deadline, or pass infeasible='best_effort'."
        )
        raise DeadlineInfeasible(msg)
    entry = Entry(
        id=job.id,
        flow_run_id=job.flow_run_id,
        step=job.step,
        key_digest=job.spool.digest,
        requests=len(job.spool.distinct),
        rows=job.rows,
        provider=ports.provider.name,
        account=job.account,
        deadline=deadline,
        entered_at=now,
    )
    run = ledger.enter(entry, stamp=clock.wall())
    if run.plan is None:
        crash_point("step.entered")
    # The keys name the account too, so this comes first. A run of an older ledger names none.
    if run.account and (run.provider, run.account) != (entry.provider, entry.account):
        raise AccountChanged(_account_message(run, entry))
    if run.key_digest != entry.key_digest and job.on_input_change == "raise":
        raise InputChanged(_input_message(run, entry))
    return entry, run


def _account_message(run: StepRun, entry: Entry) -> str:
    return (
        f"Step {run.step!r} began under account {run.account} at {run.provider}, and the block's key now belongs to "
        f"{entry.account} at {entry.provider}: what is out belongs to the first; nothing was sent. Put a key of the "
        "first account back, or start a new flow run."
    )


def _input_message(run: StepRun, entry: Entry) -> str:
    return (
        f"Step {run.step!r} was first entered at {run.entered_at:%Y-%m-%d %H:%M}Z with {run.requests:,} requests "
        f"over {run.rows:,} rows, and now builds {entry.requests:,} over {entry.rows:,}, at least one of them "
        "another. A file that changed or a date in a prompt does that. Nothing was sent. Make the prompts the same "
        "again, pass on_input_change='ask' to ask what is new, or start a new flow run."
    )
