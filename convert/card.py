"""The model card (README.md) of a converted directory: front matter for the hub, and what was done to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub

# What the card takes over from its source's front matter: the licence, and what the model is.
_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_GB = 1e9


def model_card(
    record: dict[str, Any], source: str, readme: str = "", name: str = "path/to/this/model"
) -> str:
    """The text of README.md from `record` (conversion.json) and the source's name and README.

    source: a hub id becomes `base_model`; anything else is only mentioned. readme: its front matter has the
    licence; without one the card says that it has to be looked up. name: what the commands in the card load,
    the hub id if it is known already. GB are 10**9 bytes, errors relative RMS.
    """
    metadata = front_matter(readme)
    kept = {key: metadata[key] for key in _KEPT if _is_plain(metadata.get(key))}
    on_hub = _HUB_ID.fullmatch(source) is not None
    fields = {
        "library_name": "mlx",
        **({"base_model": source} if on_hub else {}),
        "pipeline_tag": "text-generation",
        **kept,
        "tags": ["mlx", "diffusion_gemma", "mlx-diffusiongemma", record["recipe"]],
    }
    origin = f"[{source}](https://huggingface.co/{source})" if on_hub else f"`{source}`"
    if record["revision"]:
        origin += f" at revision `{record['revision']}`"
    blocks = [
        f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---",
        f"# {source.rpartition('/')[2]} for MLX, recipe {record['recipe']}",
        f"{origin}, a DiffusionGemma, converted to MLX by `mlx_dg convert` of mlx-diffusiongemma "
        f"{record['version']}.",
        "## How to run",
        _HOW_TO_RUN.format(name=name),
        "## What is stored how",
        _recipe_table(record["classes"]),
        "Bits per weight count scales and biases. The error is that of quantizing, relative and RMS: "
        "‖quantized - original‖ / ‖original‖, of large tensors on every 16th row.",
        _verification(record["verification"]),
        "## Licence",
        _licence(kept, origin),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def read_readme(directory: Path) -> str:
    """The text of `directory`/README.md, "" if there is none: no card is a reason to refuse a model."""
    try:
        return (directory / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def front_matter(readme: str) -> dict[str, Any]:
    """The YAML mapping between the `---` lines that start a README; {} if there is none or it is broken."""
    match = _FRONT_MATTER.match(readme)
    try:
        values = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: an impossible date
        return {}
    return values if isinstance(values, dict) else {}


_HOW_TO_RUN = """\
```sh
mlx_dg generate --model {name} "Why is the sky blue?" --thinking
```

```python
import mlx_dg

model, tokenizer = mlx_dg.load("{name}")
print(mlx_dg.generate(model, tokenizer, "Why is the sky blue?"))
```"""


def _is_plain(value: Any) -> bool:
    """A nonempty string or a list of them; the hub refuses a card with anything else under these keys."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(item, str) and item for item in values)


def _recipe_table(classes: dict[str, Any]) -> str:
    rows = [
        "| tensors | parameters | stored as | bits per weight | GB before | GB after | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, summary in classes.items():
        error = summary["rms_error"]
        rows.append(
            f"| {kind} | {summary['parameters']:,} | {_stored_as(summary['quantization'])} "
            f"| {_sizes(summary)} | {'' if error is None else f'{error:.4f}'} |"
        )
    total = {key: sum(s[key] for s in classes.values()) for key in ("parameters", "bytes_in", "bytes_out")}
    rows.append(f"| **all** | {total['parameters']:,} | | {_sizes(total)} | |")
    return "\n".join(rows)


def _stored_as(quantization: dict[str, Any] | None) -> str:
    if quantization is None:
        return "not quantized"
    return f"{quantization['bits']}-bit {quantization['mode']}, groups of {quantization['group_size']}"


def _sizes(summary: dict[str, Any]) -> str:
    bits = 8 * summary["bytes_out"] / max(summary["parameters"], 1)
    # Three digits that count: classes lie between kilobytes and tens of gigabytes.
    return f"{bits:.2f} | {summary['bytes_in'] / _GB:.3g} | {summary['bytes_out'] / _GB:.3g}"


def _verification(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return (
        f"Against the source, on a probe of {found['positions']} canvas positions: RMS logit error "
        f"{found['rms_logit_error']:.4f}, same most likely token at {found['argmax_agreement']:.1%}, "
        f"entropy off by {found['entropy_difference']:.4f} nats on average."
    )


def _licence(kept: dict[str, Any], origin: str) -> str:
    if "license" not in kept:
        return f"The source names none here; {origin} decides."
    name = kept.get("license_name", kept["license"])
    name = ", ".join(name) if isinstance(name, list) else name
    link = f" ({kept['license_link']})" if "license_link" in kept else ""
    return f"That of the source: {name}{link}."
