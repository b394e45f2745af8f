"""MedMAE: a ViT-B/16 pretrained on medical images by masked autoencoding (Gupta et al., arXiv:2407.14784)."""

from conceptcam.backbones.base import Backbone
from conceptcam.backbones.registry import BackboneRequest, register_backbone


@register_backbone("medmae_vit_b16")
def medmae_vit_b16(request: BackboneRequest) -> Backbone:
    """The architecture of MedMAE; features are (B, 768, H / 16, W / 16), normalized.

    The published weights are handed out by their authors only, under a non-commercial licence, so
    `pretrained=True` is refused: convert your copy to safetensors and pass it as `weights=`.
    """
    from conceptcam.backbones.timm import TimmBackbone  # timm takes seconds to import

    if request.pretrained:
        raise ValueError(
            "MedMAE's weights cannot be downloaded by a program: get them from their authors and pass "
            "`weights=FILE.safetensors`, or start from 'timm:vit_base_patch16_224.mae'"
        )
    return TimmBackbone("vit_base_patch16_224", request)
