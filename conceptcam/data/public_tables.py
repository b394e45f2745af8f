"""Tables of public data sets, rewritten with a column per finding: NIH ChestX-ray14, CheXpert and VinDr-CXR."""

import re
from collections.abc import Callable, Mapping, Sequence

from conceptcam._checks import brief
from conceptcam.data.faults import Fault
from conceptcam.data.table_file import Table, is_unknown, plain
from conceptcam.data.vindr import VINDR_CONCEPTS, VINDR_TASKS

NIH_CONCEPTS: tuple[str, ...] = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
"""The 14 labels of NIH ChestX-ray14 (Wang et al., 2017), spelled as in its table."""

CHEXPERT_CONCEPTS: tuple[str, ...] = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices"),
)
"""The labels of CheXpert (Irvin et al., 2019) but for `No Finding`, spelled as in its table."""

_NO_FINDING = "nofinding"
# The table of images and that of boxes spell one label differently.
_NIH_BOX_NAMES = {"Infiltrate": "Infiltration"}
_VINDR_NAMES = {plain(name): name for name in (*VINDR_CONCEPTS, *VINDR_TASKS)} | {"otherdisease": "Other diseases"}


def translate_labels(table: Table) -> tuple[Table, tuple[str, ...]]:
    """A table of labels with a column per finding, if it has the columns of a public set; else as it is.

    - NIH ChestX-ray14 (`Data_Entry_2017*.csv`): the findings in one cell become columns of 0 and 1.
    - CheXpert (`train.csv`, `valid.csv`): patient and part come from the path. Empty cells, findings that the report
      did not mention, stay unknown, and -1 uncertain.
    - VinDr-CXR of PhysioNet (`image_labels_*.csv`), a row per reader: names as in `VINDR_CONCEPTS` and `VINDR_TASKS`.
    - VinDr-CXR of Kaggle (`train.csv`) and `annotations_*.csv`, a row per box: a row per image and reader, in which a
      class is present if the reader drew it, else absent.

    Returns:
        The table, and what was recognized in sentences.

    Raises:
        ValueError: If a finding is not one of the set's.
    """
    return _translate(table, _LABELS)


def translate_boxes(table: Table) -> tuple[Table, tuple[str, ...]]:
    """A table of boxes with the names that `translate_labels` gives, if it has the columns of a public set."""
    return _translate(table, _BOXES)


def _translate(
    table: Table, known: Sequence[tuple[frozenset[str], str, Callable[[Table], Table]]]
) -> tuple[Table, tuple[str, ...]]:
    columns = {plain(name) for name in table.columns}
    for needed, name, rewrite in known:
        if needed <= columns:
            return rewrite(table), (f"{table.name} has the columns of {name}.",)
    return table, ()


def _column(table: Table, name: str) -> Sequence[str]:
    """A column by its plain name, which must be there."""
    return table.columns[table.find([name])[0]]


def _nih_labels(table: Table) -> Table:
    findings = [cell.split("|") for cell in _column(table, "findinglabels")]
    index = {plain(name): name for name in NIH_CONCEPTS}
    for row, names in enumerate(findings):
        for name in names:
            if plain(name) not in index and plain(name) != _NO_FINDING:
                text = f"{table.name} has the finding {brief(name)} in {table.where(row)}; known: {list(NIH_CONCEPTS)}"
                table.on_fault(Fault("unknown label", text))
    held = [{plain(name) for name in names} for names in findings]
    labels = {name: ["1" if key in one else "0" for one in held] for key, name in index.items()}
    columns = {"image": _column(table, "imageindex"), "patient": _column(table, "patientid"), **labels}
    return table.derive(columns, table.lines)


def _nih_boxes(table: Table) -> Table:
    names = [_NIH_BOX_NAMES.get(name, name) for name in _column(table, "findinglabel")]
    corners = {end: _column(table, key) for end, key in (("x", "bboxx"), ("y", "y"), ("w", "w"), ("h", "h"))}
    return table.derive({"image": _column(table, "imageindex"), "concept": names, **corners}, table.lines)


def _chexpert_labels(table: Table) -> Table:
    paths = [re.sub(r"^CheXpert-v1\.0[^/]*/", "", path) for path in _column(table, "path")]
    patients = [found[0] if (found := re.search(r"patient\d+", path)) else "" for path in paths]
    parts = [path.split("/")[0] if path.startswith(("train/", "valid/", "test/")) else "" for path in paths]
    own = {"image": paths, "patient": patients, **({"split": parts} if any(parts) else {})}
    kept = {name: cells for name, cells in table.columns.items() if plain(name) not in ("path", *own)}
    return table.derive({**own, **kept}, table.lines)


def _vindr_labels(table: Table) -> Table:
    columns = {_VINDR_NAMES.get(plain(name), name): cells for name, cells in table.columns.items()}
    return table.derive(columns, table.lines)


def _vindr_readings(table: Table) -> Table:
    """A row per image and reader, of a table with a row per box."""
    images = _column(table, "imageid")
    readers = _column(table, "radid") if table.find(["radid"]) else [""] * len(table)
    names = _vindr_classes(table)
    seen: dict[tuple[str, str], set[str]] = {}
    for image, reader, name in zip(images, readers, names, strict=True):
        seen.setdefault((image, reader), set()).add(name)
    classes = [name for name in VINDR_CONCEPTS if name in set(names)]
    columns: Mapping[str, Sequence[str]] = {
        "image_id": [image for image, _ in seen],
        "rad_id": [reader for _, reader in seen],
        **{name: ["1" if name in found else "0" for found in seen.values()] for name in classes},
    }
    line = {key: row for row, key in reversed(list(enumerate(zip(images, readers, strict=True))))}
    return table.derive(columns, [table.lines[line[key]] for key in seen])


def _vindr_boxes(table: Table) -> Table:
    class_column = table.find(["classname"])[0]
    kept = {name: cells for name, cells in table.columns.items() if plain(name) not in ("classname", "classid")}
    return table.derive({**kept, class_column: _vindr_classes(table)}, table.lines)


def _vindr_classes(table: Table) -> list[str]:
    cells = _column(table, "classname")
    for row, cell in enumerate(cells):
        if plain(cell) not in _VINDR_NAMES and plain(cell) != _NO_FINDING and not is_unknown(cell):
            text = f"{table.name} has the class {brief(cell)} in {table.where(row)}; known: {list(VINDR_CONCEPTS)}"
            table.on_fault(Fault("unknown label", text))
    return [_VINDR_NAMES.get(plain(cell), cell) for cell in cells]


_VINDR_BOXES = frozenset({"imageid", "classname", "xmin", "ymin", "xmax", "ymax"})
_LABELS = (
    (frozenset({"imageindex", "findinglabels", "patientid"}), "NIH ChestX-ray14", _nih_labels),
    (frozenset({"path", "frontallateral", "appa"}), "CheXpert", _chexpert_labels),
    (frozenset({"imageid", "aorticenlargement", "nodulemass", "ild"}), "VinDr-CXR", _vindr_labels),
    (_VINDR_BOXES, "VinDr-CXR, a row per box", _vindr_readings),
)
_BOXES = (
    (frozenset({"imageindex", "findinglabel", "bboxx"}), "NIH ChestX-ray14", _nih_boxes),
    (_VINDR_BOXES, "VinDr-CXR", _vindr_boxes),
)
