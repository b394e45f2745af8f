"""Names of the VinDr-CXR data set."""

VINDR_CONCEPTS: tuple[str, ...] = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung cavity",
    "Lung cyst",
    "Lung opacity",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pulmonary fibrosis",
    "Pneumothorax",
    "Pleural thickening",
    "Pleural effusion",
    "Rib fracture",
    "Other lesion",
)
"""The 22 local labels of VinDr-CXR, in its own order (Nguyen et al., 2022)."""


VINDR_TASKS: tuple[str, ...] = (
    "Pneumonia",
    "Tuberculosis",
    "Lung tumor",
    "COPD",
    "Other diseases",
    "No finding",
)
"""The six global labels of VinDr-CXR, in its own order."""
