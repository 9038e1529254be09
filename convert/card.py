"""Model card (README.md) of a converted directory: front matter for the hub, and a report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub

from mlx_diffusiongemma.config.files import read_text

from .report import record_cells, verification_text

# Keys of the source's front matter that the card has too: the licence, and what the model is.
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_MOST_FRONT_MATTER = 20_000  # characters
_ALIAS = re.compile(r"(?:^|[\s\[{,:-])[&*]\w", re.MULTILINE)  # may stand for a giant
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def model_card(
    record: dict[str, Any], source: str, readme: str = "", name: str = "path/to/this/model"
) -> str:
    """Return the text of README.md.

    Args:
        record: content of conversion.json.
        source: name of the source. A hub id becomes `base_model`. Any other name is only mentioned.
        readme: text of the source's README.md. If it names no licence, the card says so.
        name: name of the model in the card's commands, such as the hub id of an upload.
    """
    from huggingface_hub import ModelCardData

    metadata = front_matter(readme)
    inherited = {key: metadata[key] for key in _INHERITED if _is_plain(metadata.get(key))}
    on_hub, measured = _HUB_ID.fullmatch(source), record["verification"]
    data = ModelCardData(
        library_name="mlx",
        base_model=source if on_hub else None,
        tags=["mlx", "diffusion_gemma", "mlx-diffusiongemma", record["recipe"]],
        **{"pipeline_tag": "text-generation", **inherited},
    )
    origin = f"[{source}](https://huggingface.co/{source})" if on_hub else f"`{source}`"
    if record["revision"]:
        origin += f" at revision `{record['revision']}`"
    blocks = [
        f"---\n{data.to_yaml()}\n---",
        f"# {source.rpartition('/')[2]} for MLX, recipe {record['recipe']}",
        f"{origin}, a DiffusionGemma, converted to MLX by `mlx_dg convert` of mlx-diffusiongemma "
        f"{record['version']}.",
        "## How to run",
        _HOW_TO_RUN.format(name=name),
        "## Storage",
        _table(record),
        "Bits per weight include scales and biases. The error is that of quantization, "
        "‖quantized - original‖ / ‖original‖, of large tensors on every 16th row.",
        measured and f"Compared with the source {verification_text(measured)}.",
        "## Licence",
        _licence(inherited, origin),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def read_readme(directory: Path) -> str:
    """Return the text of `directory`/README.md, or "" if it cannot be read. A model may lack one."""
    try:
        return read_text(directory / "README.md", encoding="utf-8-sig", errors="replace")
    except (OSError, ValueError):
        return ""


def front_matter(readme: str) -> dict[str, Any]:
    """Return the YAML mapping at the start of a README, or {} if it is missing or broken.

    `ModelCard(readme).data` is not used, because it warns on stderr if the mapping is missing, and refuses
    some keys.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    match = REGEX_YAML_BLOCK.search(readme)
    text = match[2] if match else ""
    if len(text) > _MOST_FRONT_MATTER or _ALIAS.search(text):
        return {}
    try:
        values = yaml.safe_load(text)
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
    """Return True for a nonempty string or a list of them. The hub refuses other values of these keys."""
    values = value if isinstance(value, list) else [value]
    return 0 < len(values) <= 200 and all(isinstance(item, str) and item for item in values)


def _table(record: dict[str, Any]) -> str:
    head, *lines = record_cells(record)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _licence(inherited: dict[str, Any], origin: str) -> str:
    if "license" not in inherited:
        return f"The source's README names no licence. See {origin}."
    name = inherited.get("license_name", inherited["license"])
    name = ", ".join(name) if isinstance(name, list) else name
    link = f" ({inherited['license_link']})" if "license_link" in inherited else ""
    return f"The source's licence: {name}{link}."
