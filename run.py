"""One run: compose the configuration, ask every sample, print the score and its cost.

python run.py method=pqcache task=narrativeqa
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any

USAGE = """\
usage: python run.py [key=value ...]          one run
       python run.py -m key=a,b [key=c,d ...]  a sweep, one run for each combination
       python run.py experiment=NAME           a sweep as configs/experiment/NAME.yaml says

  method=NAME      {methods}
  task=NAME        {tasks}
                   or a suite, which is a sweep:
                   {suites}
  model=NAME       {models}
                   or any Hugging Face model: model=llama31_8b model.path=ORG/NAME model.revision=main
  experiment=NAME  {experiments}
  data=SOURCE      auto, miniature, hub, or a folder or data.zip with LongBench's jsonl files
  budget=B         0.1 (ratio of the prompt), 512tok, 64MiB; sink tokens come on top
  protocol=P       longbench (methods act after the whole prompt), question_after (after its context)
  decode=D         eager, static (steps of fixed shapes), graph (these as a CUDA graph); what a method cannot, it does
                   eagerly and says so
  limit=N          the first N samples only        seed=S   results=DIR   dry_run=true
  method.FIELD=V   a parameter of the method (configs/method/NAME.yaml lists them)
  task.FIELD=V     one of the task (configs/task/NAME.yaml): task.ruler.length=8192, task.turns.mode=requests (SCBench's
                   questions, each from the context), task.infinitebench.variant=june
  --cfg job        print the composed configuration

`python -m scripts.list` describes all names; configs/config.yaml all settings. The same command resumes a run that was
stopped. The last line on stdout is the folder of the run or the sweep. Runs of a sweep that differ only in method and
budget share each prompt's prefill (share_prefill=false: they do not, and their speed is measured).
"""


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 all samples answered, 1 an error or failed samples, 130 interrupted (run again to resume)."""
    # Waiting OpenMP threads spin by default, which costs small models more than 2x on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if any(a in ("-h", "--help") for a in argv):
        print(usage(), end="")
        return 0
    from eval.failures import guarded
    from eval.interrupts import STATUS, Interrupted, leaving

    try:
        with leaving():
            return guarded(lambda: start(argv))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return STATUS


def start(argv: Sequence[str]) -> int:
    """Do what the command line asks for: a run, a sweep, or to show the configuration."""
    from configs.arguments import has_suite, read
    from configs.compose import compose_config, job, plain
    from configs.experiments import is_experiment
    from configs.slurm import launcher_of
    from configs.sweep import sweep, wanted

    arguments = read(argv)
    if arguments.show:
        from yaml import safe_dump

        shown = [plain(compose_config(each.words)) for each in wanted(arguments.words, argv)]
        print("---\n".join(safe_dump(config, sort_keys=False, allow_unicode=True) for config in shown), end="")
        return 0
    if arguments.sweep or is_experiment(arguments.words) or has_suite(arguments.words):
        return sweep(arguments.words, argv, one_run)
    config = compose_config(arguments.words)
    if launcher_of(config) is not None:  # a single run on the cluster is a sweep of one
        return sweep(arguments.words, argv, one_run)
    return one_run(job(config, argv))


def one_run(task: Any) -> int:
    """Do one job and print its table; the folder is the last line on stdout."""
    from rich.console import Console

    from eval.job import prepare

    work = prepare(task)
    console = Console(width=None if sys.stdout.isatty() else 100)
    if work.job.settings.dry_run:
        from eval.plan import print_plan

        print_plan(console, work)
        return 0
    from eval import tracking
    from eval.loop import run
    from eval.report import print_scores

    work, scores = run(work)
    print_scores(console, work, scores)
    tracking.log([work.folder], work.job.settings.wandb, None)
    print(work.folder, flush=True)
    return 1 if scores["failed"] else 0


def usage() -> str:
    """The help text, with the names that the configuration folders hold."""
    from pathlib import Path
    from textwrap import fill

    from eval.task_sets import SUITES

    def names(group: str) -> str:
        return filled(sorted(path.stem for path in (Path(__file__).parent / "configs" / group).glob("*.yaml")))

    def filled(found: list[str]) -> str:
        return fill(", ".join(found), 96, subsequent_indent=" " * 19)

    groups = {"methods": "method", "tasks": "task", "models": "model", "experiments": "experiment"}
    return USAGE.format(suites=filled([*SUITES]), **{key: names(group) for key, group in groups.items()})


if __name__ == "__main__":
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 must not cost a finished run its table
    sys.exit(main(sys.argv[1:]))
