"""How fast a worker works off cost. Pure. Never here: what follows from the speed (policies/)."""


def work_tokens_per_s(decoded_tokens_per_s: float, prefilled_tokens_per_s: float, prompt_share: float | None) -> float:
    """A worker's weight counts decoded tokens, but cost is prompts, too, and those go several times faster.

    `prompt_share`: of the cost of requests lately; None: not known, then the weight stands for all, which is too little rather
    than too much.
    """
    if prompt_share is None or prefilled_tokens_per_s <= 0 or decoded_tokens_per_s <= 0:
        return decoded_tokens_per_s
    return 1.0 / (prompt_share / prefilled_tokens_per_s + (1.0 - prompt_share) / decoded_tokens_per_s)
