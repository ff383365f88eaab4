"""The architectures of the sweep: a small variant of each family, random weights, small images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

SMALL = 96  # pixels a side, where the network takes any


@dataclass(frozen=True)
class Family:
    """One model of a library. size: pixels a side. fixed: the network has to be told its image's size."""

    library: str
    name: str
    size: int = SMALL
    fixed: bool = False

    def network(self) -> nn.Module:
        return from_torchvision(self) if self.library == "torchvision" else from_timm(self)


def from_torchvision(family: Family) -> nn.Module:
    import torchvision

    sized = {"image_size": family.size} if family.fixed else {}
    plain = (
        {"init_weights": False, "aux_logits": False} if family.name in ("googlenet", "inception_v3") else {}
    )
    segmenting = {"weights_backbone": None} if family.name in SEGMENTATION else {}
    made: nn.Module = torchvision.models.get_model(family.name, weights=None, **sized, **plain, **segmenting)
    return made


def from_timm(family: Family) -> nn.Module:
    import timm

    sized = {"img_size": family.size} if family.fixed else {}
    made: nn.Module = timm.create_model(family.name, pretrained=False, num_classes=100, **sized)
    return made


SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
TORCHVISION = (
    Family("torchvision", "alexnet"),
    Family("torchvision", "vgg11_bn", 64),
    Family("torchvision", "resnet18", 64),
    Family("torchvision", "resnet50", 64),
    Family("torchvision", "resnext50_32x4d", 64),
    Family("torchvision", "wide_resnet50_2", 64),
    Family("torchvision", "mobilenet_v2"),
    Family("torchvision", "mobilenet_v3_small"),
    Family("torchvision", "mobilenet_v3_large"),
    Family("torchvision", "mnasnet0_5"),
    Family("torchvision", "efficientnet_b0"),
    Family("torchvision", "efficientnet_v2_s"),
    Family("torchvision", "regnet_x_400mf"),
    Family("torchvision", "regnet_y_400mf"),
    Family("torchvision", "squeezenet1_0"),
    Family("torchvision", "densenet121", 64),
    Family("torchvision", "googlenet"),
    Family("torchvision", "inception_v3", 128),
    Family("torchvision", "shufflenet_v2_x0_5"),
    Family("torchvision", "shufflenet_v2_x1_0"),
    Family("torchvision", "convnext_tiny", 64),
    Family("torchvision", "fcn_resnet50", 64),
    Family("torchvision", "deeplabv3_mobilenet_v3_large"),
    Family("torchvision", "lraspp_mobilenet_v3_large"),
    Family("torchvision", "vit_b_16", 64, fixed=True),
    Family("torchvision", "swin_t", 64),
    Family("torchvision", "swin_v2_t", 64),
)

ANY_SIZE = (
    "resnet26d", "resnetv2_18", "resnest14d", "dla34", "hrnet_w18_small", "selecsls42b", "vovnet39a",
    "regnetx_002", "xception41", "mobilenetv3_small_050", "mobilenetv4_conv_small", "tf_efficientnetv2_b0",
    "tinynet_e", "ghostnet_050", "ghostnetv2_100", "ghostnetv3_050", "hardcorenas_a", "lcnet_050",
    "repvgg_a0", "repghostnet_050", "mobileone_s0", "repvit_m0_9", "convnext_atto", "convnextv2_atto",
    "mobilevit_xxs", "starnet_s1", "rdnet_tiny", "hgnetv2_b0", "resnext26ts", "inception_next_atto",
    "fasternet_t0", "efficientvit_b0", "dpn48b", "res2net50_26w_4s", "skresnet18", "cspresnet50",
    "cspdarknet53", "mixnet_s", "poolformer_s12", "convformer_s18", "caformer_s18", "edgenext_xx_small",
    "mobilevitv2_050", "pvt_v2_b0", "nextvit_small", "nf_regnet_b0", "shvit_s1", "mambaout_femto",
    "rexnet_100", "eca_nfnet_l0", "focalnet_tiny_srf", "davit_tiny",
)  # fmt: skip
SIZED = {
    "inception_v4": (128, False), "csatv2": (128, False), "fastvit_t8": (128, False),
    "swiftformer_xs": (128, False), "efficientformer_l1": (224, False), "efficientformerv2_s0": (128, True),
    "deit_tiny_patch16_224": (64, True), "vit_tiny_patch16_224": (64, True), "tiny_vit_5m_224": (224, False),
    "pit_ti_224": (96, True), "mixer_s32_224": (128, True), "levit_128s": (128, True),
    "coat_lite_tiny": (64, True), "cait_xxs24_224": (64, True), "eva02_tiny_patch14_224": (56, True),
    "xcit_nano_12_p16_224": (96, True), "twins_svt_small": (96, True),
    "swin_tiny_patch4_window7_224": (112, True), "gcvit_xxtiny": (128, True), "resmlp_12_224": (64, True),
    "gmlp_ti16_224": (64, True), "tnt_s_patch16_224": (64, True), "hiera_tiny_224": (128, True),
    "lambda_resnet26t": (128, False), "mobilenetv4_hybrid_medium": (128, False),
    "efficientvit_m0": (128, True), "nest_tiny": (128, True), "visformer_tiny": (128, True),
    "botnet26t_256": (128, True), "halonet26t": (256, False), "crossvit_tiny_240": (240, False),
    "bat_resnext26ts": (256, False), "maxvit_pico_rw_256": (128, True),
}  # fmt: skip
TIMM = (
    *(Family("timm", name) for name in ANY_SIZE),
    *(Family("timm", name, size, fixed) for name, (size, fixed) in SIZED.items()),
)
FAMILIES = {f"{family.library}/{family.name}": family for family in (*TORCHVISION, *TIMM)}
