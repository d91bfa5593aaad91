"""The work of `complete`: one call, over the same engine and ledger as a step's."""

from datetime import timedelta
from typing import Any

from prefect_llm_tiers.artifacts import CallWatcher
from prefect_llm_tiers.blocks import load_ledger
from prefect_llm_tiers.carrying.identity import process_owner
from prefect_llm_tiers.carrying.opened import Opened, run_opened
from prefect_llm_tiers.carrying.remembering import begin
from prefect_llm_tiers.carrying.submitting import Asked
from prefect_llm_tiers.carrying.waiting import wait_until_done
from prefect_llm_tiers.core.requests import Endpoint, request_keys
from prefect_llm_tiers.core.runs import Answer, RequestState, step_run_id
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.due import resolved_due
from prefect_llm_tiers.engine.job import Job
from prefect_llm_tiers.engine.offered import still_offered
from prefect_llm_tiers.engine.reporting import report_of
from prefect_llm_tiers.engine.runner import Done, Runner
from prefect_llm_tiers.engine.spool import Spool
from prefect_llm_tiers.errors import AnswerRefused, ConfigurationError, InputError, NoAnswer
from prefect_llm_tiers.options import StepOptions, Terms, terms_of

__all__ = ["FLEX_PATIENCE", "complete_one"]

FLEX_PATIENCE = timedelta(minutes=15)
"""How long a call without a deadline waits for flex before it goes to the next tier; as long as one call may take."""


def complete_one(prompt: Any, asked: Asked) -> Any:
    """Ask one prompt, and return the text of the answer or the model's instance.

    Raises:
        NoAnswer: None came that can be used.
        LLMTiersError: See `errors`.
    """
    from prefect_llm_tiers.frames.output import Parser

    options = asked.options
    terms = terms_of(options, asked.step)
    if terms.endpoint is Endpoint.EMBEDDINGS:
        msg = f"{asked.step} returns a text, and {terms.endpoint} answers with vectors. Embed with a step."
        raise ConfigurationError(msg)
    parser = Parser(options.output) if options.output is not None else None
    body = _body(prompt, options, terms)

    async def completed(opened: Opened) -> str:
        key = request_keys([body], account=opened.account, endpoint=terms.endpoint)
        with Spool() as spool:
            spool.extend(key, [body])
            spool.seal()
            job = _job(asked, terms, spool, opened, accept=parser.accept if parser is not None else _anything)
            ports, watcher = opened.ports, opened.watcher
            begin(watcher, ports, step_run_id=job.id, step=asked.step, flow_run_id=asked.scope)
            async with opened.withdrawing():
                runner = Runner(job, ports)
                runner.enter()
                try:
                    done = await wait_until_done(runner, ports.clock)
                finally:
                    # Also where the call ends with an error: what was paid by then is told.
                    if (report := report_of(ports.ledger, job.id)) is not None:
                        watcher.finished(report, unasked={})
            [answer] = ports.ledger.answers([key.decode()], step_run_id=job.id)
            return _text_of(answer, done, asked.step)

    text = run_opened(
        completed,
        block=terms.block,
        ledger=load_ledger(options.ledger),
        model=options.model,
        step=asked.step,
        name=f"{asked.step}/{asked.run_key}",
        scope=asked.scope,
        keep_batches=options.keep_batches,
        watcher=CallWatcher,
    )
    if parser is None:
        return text
    instance, reason = parser.parse(text)
    if reason is not None:
        # The model takes another view of a text than it took a moment ago.
        raise _no_answer(asked.step, reason)
    return instance


def _anything(_: str) -> None:
    """Take every text."""


def _body(prompt: Any, options: StepOptions, terms: Terms) -> bytes:
    from prefect_llm_tiers.providers.bodies import BodyEncoder

    encoder = BodyEncoder(
        terms.endpoint,
        model=options.model,
        max_output_tokens=options.max_output_tokens,
        output=terms.schema(options.output),
        system=options.system,
        options=options.options,
    )
    try:
        return encoder.encode(prompt)
    except (TypeError, ValueError) as error:
        msg = (
            f"The prompt holds something that JSON cannot express ({type(error).__name__}). Nothing was sent. Correct "
            "it; an image goes as a part of a message."
        )
        raise InputError(msg) from None


def _job(asked: Asked, terms: Terms, spool: Spool, opened: Opened, *, accept: Any) -> Job:
    options, clock = asked.options, opened.ports.clock
    scope = asked.scope or process_owner()
    patient = _waits_for_flex(options, terms)
    deadline = FLEX_PATIENCE if patient else options.deadline
    return Job(
        id=step_run_id(scope, asked.step, asked.run_key),
        flow_run_id=scope,
        step=asked.step,
        model=options.model,
        endpoint=terms.endpoint,
        account=opened.account,
        capabilities=terms.capabilities,
        tiers=still_offered(
            terms.tiers, flow_run_id=scope, account=opened.account, model=options.model, endpoint=terms.endpoint
        ),
        spool=spool,
        rows=1,
        # A span counts from now: the moment the call begins.
        deadline=clock.now() + deadline if isinstance(deadline, timedelta) else resolved_due(deadline, clock),
        on_time=options.on_time,
        infeasible="best_effort" if patient else options.infeasible,
        on_miss=options.on_miss,
        on_input_change=options.on_input_change,
        max_attempts=options.max_attempts,
        reuse_for=options.reuse_for,
        min_saving_usd=options.min_saving_usd,
        rate=terms.block.rate(),
        output_tokens=options.output_tokens,
        enqueued_tokens=terms.block.most_enqueued,
        accept=accept,
    )


def _waits_for_flex(options: StepOptions, terms: Terms) -> bool:
    """Return whether a call without a deadline could wait for flex for ever, though another tier is allowed too."""
    unbounded = options.deadline is None and options.on_miss == "finish"
    return unbounded and Tier.FLEX in terms.tiers and Tier.BATCH not in terms.tiers and len(terms.tiers) > 1


def _text_of(answer: Answer | None, done: Done, step: str) -> str:
    """Return the text of an answer, or raise what came in its place without a word of what was said."""
    if answer is not None and answer.state is RequestState.ANSWERED:
        return answer.text or ""
    reason = (answer.reason if answer is not None else None) or next(iter(done.reasons), "unknown")
    if answer is not None and answer.state is RequestState.REFUSED:
        msg = (
            f"{step}: the request was refused ({reason}). The refusal is kept, and asking the same again gives the "
            "same. Ask in other words."
        )
        raise AnswerRefused(msg, reason)
    raise _no_answer(step, reason, lasting=reason in done.permanent)


def _no_answer(step: str, reason: str, *, lasting: bool = False) -> NoAnswer:
    if lasting:
        advice = "The provider says the same to the same request: correct the prompt or the options."
    else:
        advice = "What was paid for is in the ledger. Run the flow again to ask once more."
    return NoAnswer(f"{step}: no answer came that can be used ({reason}). {advice}", reason)
