"""The conformance kit: what every selection method must keep, each as a named check on a tiny random model.

Checks treat a method by what it declares (`kind`, `spread`, `distance`, `own_prefill`, `block`), never by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scripts.contract.budget import declares, is_dense_when_it_may_read_all, keeps_its_budget, really_selects
from scripts.contract.case import Broken, Case, Exempt, said
from scripts.contract.independence import (
    does_not_care_for_the_order_of_heads,
    forgets_the_last_sample,
    is_deterministic,
    shares_its_prefix,
)
from scripts.contract.inputs import (
    answers_short_prompts,
    is_the_same_in_chunks,
    runs_in_half_precision,
    takes_a_question,
)
from scripts.contract.memory import counts_its_bytes
from scripts.contract.models import SHAPES, distinct_ids, tiny
from scripts.contract.reading import chooses_candidates_only, later_tokens_change_nothing, reads_what_it_says

__all__ = ["CHECKS", "SHAPES", "Broken", "Case", "Check", "Exempt", "distinct_ids", "said", "tiny"]


@dataclass(frozen=True)
class Check:
    """One promise. what: it in words. run: raises Broken where it is not kept, Exempt where it does not apply."""

    name: str
    what: str
    run: Callable[[Case], None]


CHECKS = (
    Check("declares", "a frozen dataclass whose declarations, splits and layer budgets make sense", declares),
    Check("whole", "with a budget for everything its logits are full attention's", is_dense_when_it_may_read_all),
    Check("budget", "no step attends more than the budget, over the declared spread", keeps_its_budget),
    Check("selects", "asked in each layer and step, it leaves tokens out and uses its budget", really_selects),
    Check("candidates", "it chooses candidates only, each once, nothing from the future", chooses_candidates_only),
    Check("causal", "later tokens of a question do not change the answers before them", later_tokens_change_nothing),
    Check("seed", "the same seed gives the same choice and logits", is_deterministic),
    Check("reset", "samples A, B, A: A is the same twice", forgets_the_last_sample),
    Check("short", "prompts of 1 token and more are answered, within the budget densely", answers_short_prompts),
    Check("chunks", "a prefill in chunks gives what one in one piece gives", is_the_same_in_chunks),
    Check("question", "a question of several tokens may follow the prompt", takes_a_question),
    Check("positions", "outputs equal a masked oracle on the positions that are read", reads_what_it_says),
    Check("heads", "the order of query heads within a group does not matter", does_not_care_for_the_order_of_heads),
    Check("bytes", "the ledger's bytes are those of the tensors that store and index hold", counts_its_bytes),
    Check(
        "shared", "beside other arms on one prefill it answers as alone, and writes to none of it", shares_its_prefix
    ),
    Check("half", "it runs in bfloat16", runs_in_half_precision),
)
