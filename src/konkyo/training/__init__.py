"""Training models to look at the right place: losses on maps, heads whose maps are better, and the loop.

The names below are the public face of this package.
"""

from typing import TYPE_CHECKING

from konkyo.utils.lazy import lazy

if TYPE_CHECKING:
    from konkyo.models.networks.attention_branch import (
        AttentionBranchNetwork,
        AttentionBranchOutput,
        attention_branch_loss,
    )
    from konkyo.models.networks.backbone import Backbone, features_of
    from konkyo.models.networks.levels import gaze_network
    from konkyo.models.networks.recam import ReCAM, ReCAMOutput, recam_loss
    from konkyo.models.networks.vib import (
        Noise,
        VIBClassifier,
        VIBHead,
        VIBLoss,
        VIBOutput,
        channel_attention,
        kl_divergence,
        linear_attention,
    )
    from konkyo.training.augmentation import keep_salient_cutout, keep_salient_paste, saliency_mix
    from konkyo.training.loop import Fitted, Objective, fit
    from konkyo.training.losses.consistency import ConsistencyLoss, LambdaSchedule
    from konkyo.training.losses.decomposition import Decomposition, cdep, contextual_decomposition
    from konkyo.training.losses.distillation import (
        InstanceMaps,
        attention_transfer,
        instance_distillation,
        map_distillation,
        odam_maps,
    )
    from konkyo.training.losses.instances import odam_loss
    from konkyo.training.losses.reasons import outside_energy, right_reasons
    from konkyo.training.losses.saliency import redrawn, saliency_guided
    from konkyo.training.losses.views import Views, aligned, attention_consistency, random_views
    from konkyo.training.maps import TrainingMaps
    from konkyo.training.recipe import Recipe
    from konkyo.training.sampling import ClassBalancedSampler
    from konkyo.training.trackers import Tracker

__all__ = [
    "AttentionBranchNetwork",
    "AttentionBranchOutput",
    "Backbone",
    "ClassBalancedSampler",
    "ConsistencyLoss",
    "Decomposition",
    "Fitted",
    "InstanceMaps",
    "LambdaSchedule",
    "Noise",
    "Objective",
    "ReCAM",
    "ReCAMOutput",
    "Recipe",
    "Tracker",
    "TrainingMaps",
    "VIBClassifier",
    "VIBHead",
    "VIBLoss",
    "VIBOutput",
    "Views",
    "aligned",
    "attention_branch_loss",
    "attention_consistency",
    "attention_transfer",
    "cdep",
    "channel_attention",
    "contextual_decomposition",
    "features_of",
    "fit",
    "gaze_network",
    "instance_distillation",
    "keep_salient_cutout",
    "keep_salient_paste",
    "kl_divergence",
    "linear_attention",
    "map_distillation",
    "odam_loss",
    "odam_maps",
    "outside_energy",
    "random_views",
    "recam_loss",
    "redrawn",
    "right_reasons",
    "saliency_guided",
    "saliency_mix",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "konkyo.models.networks.attention_branch": (
            "AttentionBranchNetwork",
            "AttentionBranchOutput",
            "attention_branch_loss",
        ),
        "konkyo.models.networks.backbone": (
            "Backbone",
            "features_of",
        ),
        "konkyo.models.networks.levels": ("gaze_network",),
        "konkyo.models.networks.recam": (
            "ReCAM",
            "ReCAMOutput",
            "recam_loss",
        ),
        "konkyo.models.networks.vib": (
            "Noise",
            "VIBClassifier",
            "VIBHead",
            "VIBLoss",
            "VIBOutput",
            "channel_attention",
            "kl_divergence",
            "linear_attention",
        ),
        "konkyo.training.augmentation": (
            "keep_salient_cutout",
            "keep_salient_paste",
            "saliency_mix",
        ),
        "konkyo.training.loop": (
            "Fitted",
            "Objective",
            "fit",
        ),
        "konkyo.training.losses.consistency": (
            "ConsistencyLoss",
            "LambdaSchedule",
        ),
        "konkyo.training.losses.decomposition": (
            "Decomposition",
            "cdep",
            "contextual_decomposition",
        ),
        "konkyo.training.losses.distillation": (
            "InstanceMaps",
            "attention_transfer",
            "instance_distillation",
            "map_distillation",
            "odam_maps",
        ),
        "konkyo.training.losses.instances": ("odam_loss",),
        "konkyo.training.losses.reasons": (
            "outside_energy",
            "right_reasons",
        ),
        "konkyo.training.losses.saliency": (
            "redrawn",
            "saliency_guided",
        ),
        "konkyo.training.losses.views": (
            "Views",
            "aligned",
            "attention_consistency",
            "random_views",
        ),
        "konkyo.training.maps": ("TrainingMaps",),
        "konkyo.training.recipe": ("Recipe",),
        "konkyo.training.trackers": ("Tracker",),
        "konkyo.training.sampling": ("ClassBalancedSampler",),
    },
)
