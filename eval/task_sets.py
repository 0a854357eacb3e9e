"""Named sets of tasks: an average says which one it is over, and `task=` takes their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from data.miniature import FORMS

# LongBench's categories (arXiv 2308.14508), the English tasks and code only.
CATEGORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "single_doc_qa": ("narrativeqa", "qasper", "multifieldqa_en"),
        "multi_doc_qa": ("hotpotqa", "2wikimqa", "musique"),
        "summarization": ("gov_report", "qmsum", "multi_news"),
        "few_shot": ("trec", "triviaqa", "samsum"),
        "synthetic": ("passage_count", "passage_retrieval_en"),
        "code": ("lcc", "repobench-p"),
    }
)
_KV16 = tuple(task for tasks in CATEGORIES.values() for task in tasks)
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
RULER = (
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2"),
)
INFINITEBENCH = (
    *("passkey", "number_string", "kv_retrieval"),
    *("longbook_sum_eng", "longbook_qa_eng", "longbook_choice_eng", "longbook_qa_chn", "longdialogue_qa_eng"),
    *("math_find", "math_calc", "code_run", "code_debug"),
)
SCBENCH = (
    *("scbench_kv", "scbench_prefix_suffix", "scbench_vt", "scbench_repoqa", "scbench_qa_eng", "scbench_qa_chn"),
    *("scbench_choice_eng", "scbench_many_shot", "scbench_mf", "scbench_summary"),
    *("scbench_summary_with_needles", "scbench_repoqa_and_kv"),
)
TASK_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # What PQCache (arXiv 2407.12820) runs: no code task.
        "pqcache14": tuple(task for task in _KV16 if task not in CATEGORIES["code"]),
        # What PyramidKV, AdaKV and most papers on KV caches average over.
        "kv16": _KV16,
        **CATEGORIES,
        # All of LongBench (arXiv 2308.14508), and all of RULER (arXiv 2404.06654).
        "longbench_21": (*_KV16, *CHINESE),
        "ruler_13": RULER,
        # All of InfiniteBench (arXiv 2402.13718).
        "infinitebench": INFINITEBENCH,
        # All of SCBench (arXiv 2412.10319).
        "scbench": SCBENCH,
    }
)
# What `task=` takes besides single tasks. The first two are other names of sets that tables name by their papers.
SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"longbench_14": TASK_SETS["pqcache14"], "longbench_16": TASK_SETS["kv16"], **TASK_SETS}
)
# How the miniature's tasks are solved: one look-up, several, or a count over the whole context. Never LongBench.
MINIATURE_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "miniature16": tuple(FORMS),
        **{
            f"miniature_{group}": tuple(task for task, form in FORMS.items() if form.group == group)
            for group in dict.fromkeys(form.group for form in FORMS.values())
        },
    }
)


def task_set(name: str) -> tuple[str, ...]:
    """The tasks of a set, miniature ones included. Raises ValueError that lists the names."""
    known = {**TASK_SETS, **SUITES, **MINIATURE_SETS}
    if name not in known:
        raise ValueError(f"task set {name} is unknown; allowed are {', '.join(known)}")
    return known[name]


def covered(tasks: Collection[str], miniature: bool) -> dict[str, tuple[str, ...]]:
    """The named sets of that kind of rows whose tasks are all there."""
    sets = MINIATURE_SETS if miniature else TASK_SETS
    return {name: of for name, of in sets.items() if set(of) <= set(tasks)}
