"""``hf-mmembed doctor``: what is installed, what is broken, and the command that fixes it.

In: the running Python environment. Out: a report on stdout and exit code 0, or 1 when something needed is missing,
too old or broken. Nothing suspicious is imported here: whatever can crash is tried in a child process, so a broken
package is reported and does not take the doctor down with it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata

import typer

__all__ = [
    "Finding",
    "doctor",
    "examine_extras",
    "examine_requirements",
    "examine_torch_with_faiss",
    "examine_torchvision",
    "extra_with",
    "probe",
]

DISTRIBUTION = "hf-mmembed"
PROBE_SECONDS = 120

_DEVICE_REPORT = """
import json, torch
report = {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda_build": torch.version.cuda}
if torch.cuda.is_available():
    report["gpus"] = [
        [p.name, p.total_memory] for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    report["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
elif torch.backends.mps.is_available():
    report["gpus"], report["bf16"] = [["Apple GPU (mps)", None]], True
else:
    flags = getattr(torch.cpu, "get_capabilities", dict)()
    report["gpus"], report["bf16"] = [], bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
print(json.dumps(report))
"""

# Enough work that each starts threads of its own.
_SEARCH_BESIDE_TORCH = """
import torch
import faiss
import numpy as np
torch.ones(1 << 20).sum()
vectors = np.random.default_rng(0).random((4096, 32), dtype=np.float32)
index = faiss.IndexFlatIP(32)
index.add(vectors)
index.search(vectors[:64], 10)
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        state: What was found, in words.
        remedy: The command that fixes it. None: nothing to fix.
    """

    name: str
    state: str
    remedy: str | None = None


def probe(code: str) -> tuple[str, str | None]:
    """Run ``code`` in a child Python and report how it went.

    Args:
        code: Python source.

    Returns:
        What it printed, and None if it ran to its end, else the line of its error output that says why not, and the
        signal that killed it, if one did.

    Example:
        >>> probe("print(1 + 1)")
        ('2', None)
        >>> probe("raise RuntimeError('no')")
        ('', 'RuntimeError: no')
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PROBE_SECONDS} seconds"
    if done.returncode == 0:
        return done.stdout.strip(), None
    lines = done.stderr.strip().splitlines()
    why = [line for line in lines if line.startswith("OMP: Error")] or lines[-1:]  # hints follow OpenMP's errors
    ended = [f"exit code {done.returncode}"] if done.returncode > 0 else [f"killed by signal {-done.returncode}"]
    return done.stdout.strip(), ": ".join(ended + why if done.returncode < 0 else why or ended)


def examine_requirements(requirements: list[str], extra: str = "") -> list[Finding]:
    """Compare installed versions with the floors of the package's own metadata.

    Args:
        requirements: Requirement strings as `importlib.metadata.requires` returns them.
        extra: Name of the extra to look at. Defaults to "", the core.

    Returns:
        One finding per requirement that applies, in the given order.

    Example:
        >>> [finding] = examine_requirements(["typer>=9999"])
        >>> finding.remedy
        'pip install "typer>=9999"'
        >>> [finding] = examine_requirements(["no-such-package; extra == 'demo'"], extra="demo")
        >>> finding.state
        'missing'
    """
    from packaging.requirements import Requirement

    findings = []
    for requirement in map(Requirement, requirements):
        needed_by_core = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not applies or (extra and needed_by_core):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(requirement.name, "missing", f'pip install "{wanted}"'))
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            findings.append(Finding(requirement.name, installed))
        else:
            findings.append(
                Finding(
                    requirement.name, f"{installed}, but {requirement.specifier} is needed", f'pip install "{wanted}"'
                )
            )
    return findings


def examine_extras(requirements: list[str], extras: list[str]) -> list[Finding]:
    """Say which extras are complete.

    Args:
        requirements: Requirement strings as `importlib.metadata.requires` returns them.
        extras: Names of the extras.

    Returns:
        One finding per extra, whose remedy installs it.
    """
    findings = []
    for extra in extras:
        lacking = [finding.name for finding in examine_requirements(requirements, extra) if finding.remedy]
        state = f"lacks {', '.join(lacking)}" if lacking else "complete"
        findings.append(Finding(extra, state, f'pip install "{DISTRIBUTION}[{extra}]"' if lacking else None))
    return findings


def extra_with(package: str) -> str | None:
    """The smallest extra of this distribution that brings a package; None where none does.

    Example:
        >>> extra_with("peft"), extra_with("torch")
        ('train', None)
    """
    from packaging.requirements import Requirement

    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a checkout
        return None
    lines = map(Requirement, about.get_all("Requires-Dist") or [])
    optional = [(line.name, line.marker) for line in lines if line.marker]
    brought = {
        extra: {name for name, marker in optional if marker.evaluate({"extra": extra})}
        for extra in about.get_all("Provides-Extra") or []
    }
    return min(
        (extra for extra in brought if package in brought[extra]), key=lambda extra: len(brought[extra]), default=None
    )


def examine_torchvision(torch_version: str | None) -> Finding:
    """Try torchvision, which only stock processors with a part for videos need, but which breaks ``import transformers`` when it does not fit torch.

    A wheel built for another torch raises ``operator torchvision::nms does not exist`` on import, and transformers
    takes its mere presence for a working installation.

    Args:
        torch_version: The installed torch, for the advice. None: unknown.
    """
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "not installed (needed only to open native exports of the Qwen family)")
    version, error = probe("import torchvision; print(torchvision.__version__)")
    if error is None:
        return Finding("torchvision", f"{version} (works; needed only to open native exports of the Qwen family)")
    return Finding(
        "torchvision",
        f"BROKEN: {error}. It does not match torch {torch_version or '(unknown)'}, and transformers fails to import "
        "beside it. Uninstall it, or install the build made for this torch",
        "pip uninstall -y torchvision",
    )


def examine_torch_with_faiss() -> Finding:
    """Try a search by faiss beside torch, when each is known to be imported alone.

    Wheels for macOS bring an OpenMP runtime each (faiss-wheels issue 73). The second one to load may end the process,
    at once or in the first search, without a traceback.
    """
    name = "torch and faiss together"
    _, error = probe(_SEARCH_BESIDE_TORCH)
    if error is None:
        return Finding(name, "yes")
    if not error.startswith(("killed by signal", "OMP: Error")):
        return Finding(name, f"BROKEN: {error}", "pip install --force-reinstall --no-deps faiss-cpu")
    return Finding(
        name,
        f"BROKEN: {error}. Each is imported alone without it, so the likely cause is that each brought an OpenMP "
        "runtime of its own and the two collide, as is known of the wheels for macOS. The line below lets both be "
        "loaded, which OpenMP's authors call unsafe, and keeps to one thread, which is reported to avoid the crashes. "
        "Or install both from conda-forge (faiss-cpu, pytorch), where they share one runtime",
        "export KMP_DUPLICATE_LIB_OK=TRUE OMP_NUM_THREADS=1",
    )


def _examine_imports() -> list[Finding]:
    findings = []
    for name, code in (
        ("transformers imports", "from transformers import AutoProcessor, Qwen2VLModel"),
        ("faiss imports", "import faiss"),
    ):
        _, error = probe(code)
        package = name.split()[0].replace("faiss", "faiss-cpu")
        remedy = f"pip install --force-reinstall --no-deps {package}"
        findings.append(Finding(name, "yes") if error is None else Finding(name, f"BROKEN: {error}", remedy))
    return findings


def _examine_device() -> list[Finding]:
    printed, error = probe(_DEVICE_REPORT)
    if error is not None:
        return [Finding("torch imports", f"BROKEN: {error}", "pip install --force-reinstall torch")]
    report = json.loads(printed)
    if report["gpus"]:
        device = "; ".join(f"{name}, {memory / 2**30:.0f} GiB" if memory else name for name, memory in report["gpus"])
    else:
        device = f"CPU, {report['threads']} threads"
    findings = [Finding("torch imports", "yes"), Finding("device", device)]
    fast = "in hardware: --dtype bfloat16 is a good choice" if report["bf16"] else "no hardware support: use float32"
    findings.append(Finding("bfloat16", fast))
    if not report["gpus"] and report["cuda_build"] is None and shutil.which("nvidia-smi"):
        findings.append(Finding("note", f"an NVIDIA driver is here, but torch {report['version']} is a CPU build"))
    return findings


def doctor() -> None:
    """Show what is installed and what is broken, with the command that fixes it.

    Exit code 0 means that everything the core needs is there and works; a missing extra is no fault.

    Example: hf-mmembed doctor
    """
    requirements = metadata.requires(DISTRIBUTION) or []
    extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    core = [
        Finding("python", sys.version.split()[0]),
        Finding(DISTRIBUTION, metadata.version(DISTRIBUTION)),
        *examine_requirements(requirements),
    ]
    torch_version = next((finding.state for finding in core if finding.name == "torch"), None)
    core.append(examine_torchvision(torch_version))
    works = [*_examine_device(), *_examine_imports()]
    if not any(finding.remedy for finding in works):
        works.append(examine_torch_with_faiss())
    optional = examine_extras(requirements, extras)

    for title, findings in (("installed", core), ("works", works), ("extras", optional)):
        typer.echo(f"{title}:")
        for finding in findings:
            mark = "✗" if finding.remedy and title != "extras" else " "
            typer.echo(f"  {mark} {finding.name:<30} {finding.state}")
        typer.echo()
    # One cause breaks several imports: the first broken layer is what to fix first.
    remedies = [f.remedy for f in core if f.remedy] or [f.remedy for f in works if f.remedy]
    if remedies:
        typer.echo("to fix it:")
        for remedy in remedies:
            typer.echo(f"  {remedy}")
        raise typer.Exit(1)
    for finding in optional:
        if finding.remedy:
            typer.echo(f"to add {finding.name}: {finding.remedy}")
    typer.echo("all good")
