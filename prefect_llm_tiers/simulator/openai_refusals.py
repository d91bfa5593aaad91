"""How OpenAI words the refusal of a live call."""

import math

from prefect_llm_tiers.simulator.limits import reset_text
from prefect_llm_tiers.simulator.openai_errors import openai_error
from prefect_llm_tiers.simulator.wire import Refused

__all__ = ["no_capacity", "refusal"]


def refusal(fault: str, status: int, retry_after_s: float) -> Refused:
    """Word the refusal of a live call that a fault struck."""
    match fault:
        case "live_limited":
            seconds = str(math.ceil(retry_after_s))
            return openai_error(
                status,
                f"Rate limit reached on requests per min (RPM). Please try again in {reset_text(retry_after_s)}.",
                code="rate_limit_exceeded",
                kind="requests",
                headers={"retry-after": seconds, "retry-after-ms": str(math.ceil(retry_after_s * 1000))},
            )
        case "live_quota":
            message = "You exceeded your current quota, please check your plan and billing details."
            return openai_error(status, message, code="insufficient_quota", kind="insufficient_quota")
        case "live_capacity":
            return no_capacity()
        case "live_498":
            return no_capacity(status)
        case _:
            message = "The server is overloaded or not ready yet. Try again later."
            return openai_error(status, message, kind="server_error")


_GROQS_OWN = 498


def no_capacity(status: int = 429) -> Refused:
    """Word flex's refusal for want of room: OpenAI's 429, or Groq's 498."""
    if status == _GROQS_OWN:
        message = "Flex tier capacity exceeded. Please try again later."
        return openai_error(status, message, code="capacity_exceeded", kind="capacity_exceeded")
    return openai_error(
        429,
        "Resource Unavailable: flex processing has no capacity for this request right now. You were not charged.",
        code="resource_unavailable",
        kind="resource_unavailable",
    )
