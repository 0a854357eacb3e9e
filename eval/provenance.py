"""Where a number comes from: code, packages, machine, job. Never the environment itself, which holds keys."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Packages that can change an answer, its score or its time.
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "flash-attn",
    "triton",
    "hydra-core",
    "omegaconf",
    "datasets",
    "huggingface_hub",
    "numpy",
    "scipy",
    "pandas",
    "rouge",
    "rouge-score",
    "fuzzywuzzy",
    "Levenshtein",
    "jieba",
    "filelock",
)
SLURM = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_PROCID",
    "SLURM_NODELIST",
    "SLURM_RESTART_COUNT",
)
REDACTED = "<redacted>"
_MAX_UNTRACKED_BYTES = 2**20
_GIT_S = 30

# Whole words at the end of a name: `hub_token=` hides a key, `max_new_tokens=` and `tokenizer=` do not.
_SECRET_NAME = re.compile(
    r"(?:^|[._-])(?:token|secret|password|passwd|passphrase|(?:api|access|private|secret)?[_-]?key|auth|credentials?)$",
    re.IGNORECASE,
)
_PUBLIC_NAME = re.compile(r"(?:revision|commit|sha|hash|blob)$", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(?:hf|ghp|gho|ghu|ghs|ghr|github_pat|glpat|npm|pypi|wandb_v\d)[_-][A-Za-z0-9_-]{16,}"
    r"|\bsk-[A-Za-z0-9_-]{16,}|\bxox[a-z]-[A-Za-z0-9-]{10,}|\bAKIA[0-9A-Z]{16}|\beyJ[A-Za-z0-9_-]{16,}[.A-Za-z0-9_-]*"
    r"|(?i:(?:token|secret|password|api[_-]?key)['\"]?\s*[:=]\s*)[^,}&\s]+"
    r"|(?<=://)[^/@\s]+(?=@)|(?i:\bbearer\s+)\S+"
    r"|\b(?=[A-Za-z0-9]*[a-z])(?=[A-Za-z0-9]*[A-Z])(?=[A-Za-z0-9]*[0-9])[A-Za-z0-9]{32,}\b"
)
# A key of 32 to 64 hex digits (W&B's has 40) is only told from a commit by the name before it.
_HEX_KEY = re.compile(r"[0-9a-f]{32,64}", re.IGNORECASE)


def collect(argv: Sequence[str], *, device: str, seed: int, root: Path | None = None) -> dict[str, Any]:
    """All that a reader needs to ask where a number comes from, as plain JSON; what is not known is null.

    argv: the command line; values that look like keys are replaced. device: the accelerator, in words.
    root: the repository; this file's by default.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": redact(argv),
        "git": git_state(root or Path(__file__).resolve().parents[1]),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "device": device,
        "seed": seed,
        "slurm": {name: os.environ[name] for name in SLURM if name in os.environ},
    }


def redact(argv: Sequence[str]) -> list[str]:
    """The command line without keys, tokens and passwords: `name=value`, `--name value` and known forms anywhere."""
    return [
        REDACTED if _is_secret_flag(before) and not argument.startswith("-") else _redact_one(argument)
        for before, argument in zip(["", *argv], argv, strict=False)
    ]


def _is_secret_flag(argument: str) -> bool:
    return argument.startswith("-") and "=" not in argument and bool(_SECRET_NAME.search(argument))


def _redact_one(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not equals:
        name, value = "", argument
    hex_key = _HEX_KEY.fullmatch(value.strip("'\"")) and not _PUBLIC_NAME.search(name)
    if value and (_SECRET_NAME.search(name) or hex_key):
        return f"{name}{equals}{REDACTED}"
    return _SECRET_TEXT.sub(REDACTED, argument)


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit, whether the tree differs from it, and a hash of the difference (None for a clean tree).

    None without git and where `root` is no repository of its own, so that a repository around it is not taken for it.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(os.fsdecode(top.strip())).resolve() != root.resolve():
        return None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    status = _git(root, "status", "--porcelain", "-z", "--untracked-files=all")
    return {
        "commit": None if commit is None else commit.decode().strip(),
        "dirty": None if status is None else bool(status),
        "diff_hash": _diff_hash(root, commit is not None) if status else None,
    }


def _diff_hash(root: Path, has_commit: bool) -> str:
    """10 hex digits over the tracked changes and the untracked files, a new method's file among them."""
    digest = hashlib.sha256()
    if has_commit:
        digest.update(_git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv") or b"")
    listed = _git(root, "ls-files", "--others", "--exclude-standard", "-z") or b""
    for name in sorted(filter(None, listed.split(b"\0"))):
        digest.update(name + b"\0" + _content(root / os.fsdecode(name)))
    return digest.hexdigest()[:10]


def _content(path: Path) -> bytes:
    """A file's bytes; of a large one (weights, data), its size."""
    try:
        size = path.stat().st_size
        return path.read_bytes() if size <= _MAX_UNTRACKED_BYTES else str(size).encode()
    except OSError:
        return b""


def _git(root: Path, *arguments: str) -> bytes | None:
    # GIT_DIR and its like (set inside hooks) would answer for another repository; the index is not to be locked.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=_GIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
