"""What does `from_pretrained` cost over reading its file? Both in fresh processes, imports included."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import finish

from conceptcam import create_model

TIME_TARGET = 1.3
"""Highest ratio of the time, imports included, to importing timm and reading the file."""
MEMORY_TARGET = 1.3
"""Highest ratio of the memory grown after the imports to the size of the weights."""

PROGRAM = """
import json, resource, sys, time
def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()
start = time.perf_counter()
import timm
from safetensors.torch import load_file
if sys.argv[1] == "model":
    import conceptcam.backbones.timm
    from conceptcam.model.concept_model import ConceptModel
imported, before = time.perf_counter(), resident()
if sys.argv[1] == "model":
    tensors = (model := ConceptModel.from_pretrained(sys.argv[2])).state_dict()
else:
    tensors = load_file(sys.argv[2] + "/model.safetensors")
loaded = time.perf_counter()
touched = sum(float(tensor.sum()) for tensor in tensors.values())  # a file mapped into memory is read when it is used
print(json.dumps({"import": imported - start, "load": loaded - imported, "total": loaded - start,
                  "grown": resident() - before}))
"""


def measure(folder: Path, *, repeats: int) -> list[dict[str, Any]]:
    """One row each for reading the file and for the model, in turns."""
    runs: dict[str, list[dict[str, float]]] = {"file": [], "model": []}
    for round_number in range(-1, repeats):
        for name in runs:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, name, str(folder)], capture_output=True, text=True, check=True
            )
            if round_number >= 0:  # the first round warms the disk's cache
                runs[name].append(json.loads(done.stdout))
    size = (folder / "model.safetensors").stat().st_size
    middle = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }
    return [
        {
            "what": what,
            "import s": round(middle[name]["import"], 2),
            "load s": round(middle[name]["load"], 3),
            "total over file": round(middle[name]["total"] / middle["file"]["total"], 3),
            "memory over weights": round(middle[name]["grown"] / size, 3),
            "target": None if name == "file" else f"{TIME_TARGET} and {MEMORY_TARGET}",
            "met": None
            if name == "file"
            else middle[name]["total"] <= TIME_TARGET * middle["file"]["total"]
            and middle[name]["grown"] <= MEMORY_TARGET * size,
        }
        for name, what in (("file", "timm and load_file"), ("model", "from_pretrained"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="cbm_medmae_vit_b16", help="which architecture to load")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = tuple(f"concept {k}" for k in range(22))
        create_model(options.architecture, concepts=names, tasks=("task",)).save_pretrained(folder)
        rows = measure(Path(folder), repeats=options.repeats)
    finish(rows, vars(options), options.json)


if __name__ == "__main__":
    main()
