"""Which timm models qualify as backbones? Builds each one without memory and looks at the shape it gives.

A model qualifies if `create_backbone("timm:NAME")` at its default input size gives features (B, C, h, w), C
being `out_channels`. All of timm takes about five minutes.
"""

import argparse
import logging
import warnings
from pathlib import Path

import timm
import torch
from measuring import finish

from conceptcam import create_backbone

BATCH = 2


def input_size(name: str) -> tuple[int, int]:
    """(H, W) that a timm model is made for."""
    config = timm.get_pretrained_cfg(name)
    height, width = (config.input_size if config is not None else (3, 224, 224))[-2:]
    return height, width


@torch.no_grad()
def why_not(name: str) -> str:
    """What keeps a timm model from being a backbone; empty if nothing does."""
    try:
        size = input_size(name)
        with torch.device("meta"):
            backbone = create_backbone(f"timm:{name}", image_size=size).eval()
            shape = tuple(backbone(torch.empty(BATCH, 3, *size)).shape)
    except Exception as error:  # a sweep over other people's models meets every kind, and lists it
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if len(shape) != 4 or shape[:2] != (BATCH, backbone.out_channels) or min(shape) < 1:
        return f"gives {shape}, out_channels {backbone.out_channels}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filter", default="*", help="names to try, as timm.list_models takes them: 'vit_*'")
    parser.add_argument("--limit", type=int, help="try the first so many")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # timm warns of its own deprecated names and of shapes unknown on meta
    logging.disable(logging.WARNING)
    names = timm.list_models(options.filter)[: options.limit]
    rows = []
    for number, name in enumerate(names, start=1):
        if number % 100 == 0:
            print(f"{number} of {len(names)} ...", flush=True)
        if reason := why_not(name):
            rows.append({"does not qualify": name, "why": reason[:160]})
    finish(rows, {**vars(options), "timm": timm.__version__, "models": len(names)}, options.json)
    print(f"{len(names) - len(rows)} of {len(names)} timm models qualify (timm {timm.__version__})")


if __name__ == "__main__":
    main()
