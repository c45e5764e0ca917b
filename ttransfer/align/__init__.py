"""Domain alignment as plain functions: distances, games, pseudo-labels, invariances; tensors in, one scalar out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ttransfer._errors import nearest
from ttransfer.align._adda import adda, domain_confusion
from ttransfer.align._advent import self_information
from ttransfer.align._adversarial import domain_adversarial, gradient_reversal
from ttransfer.align._afn import afn, afn_hard
from ttransfer.align._atdoc import Memory, atdoc, atdoc_normalized, neighbourhood, remember
from ttransfer.align._atdoc_nc import atdoc_nc, remember_centres
from ttransfer.align._bandwidth import median_bandwidth
from ttransfer.align._bridge import bridge
from ttransfer.align._cdan import multilinear, multilinear_random
from ttransfer.align._cdd import cdd
from ttransfer.align._classes import class_matrix, map_labels, map_logits, map_probabilities
from ttransfer.align._cmd import cmd
from ttransfer.align._consistency import consistency, uda
from ttransfer.align._coral import coral, coral_mean
from ttransfer.align._cst import cst
from ttransfer.align._deepjdot import deepjdot
from ttransfer.align._energy import energy_distance
from ttransfer.align._fda import fourier_swap
from ttransfer.align._fishr import fishr, head_variances, variance_gap
from ttransfer.align._flexmatch import flexible_thresholds, flexmatch, remember_labels
from ttransfer.align._gradients import iga, mldg
from ttransfer.align._groupdro import group_weights
from ttransfer.align._homm import homm
from ttransfer.align._information import diversity, infomax
from ttransfer.align._invariance import domain_risks, irm, irm_unbiased, vrex
from ttransfer.align._jmmd import jmmd, jmmd_unbiased
from ttransfer.align._lmmd import lmmd
from ttransfer.align._mcc import mcc
from ttransfer.align._mcd import mcd
from ttransfer.align._mdd import mdd
from ttransfer.align._mixup import mixup
from ttransfer.align._mmd import mmd, mmd_linear, mmd_unbiased
from ttransfer.align._ncm import nearest_class_mean, normalize_features
from ttransfer.align._partial import class_weights, importance_weights, osbp
from ttransfer.align._pseudo_label import fixmatch, pseudo_label
from ttransfer.align._rsd import rsd
from ttransfer.align._sd import sd
from ttransfer.align._self_ensembling import self_ensembling
from ttransfer.align._shot import shot_labels
from ttransfer.align._sinkhorn import sinkhorn_divergence
from ttransfer.align._sliced import sliced_wasserstein
from ttransfer.align._spectral import bnm, bsp
from ttransfer.align._symnets import symnets_category, symnets_confusion, symnets_domain, symnets_entropy
from ttransfer.align._tsallis import tsallis, tsallis_balanced
from ttransfer.align._vat import vat
from ttransfer.align._wdgrl import gradient_penalty, wdgrl
from ttransfer.align._weighted import entropy_weights, weighted_domain_adversarial

__all__ = [
    "Memory",
    "adda",
    "afn",
    "afn_hard",
    "atdoc",
    "atdoc_nc",
    "atdoc_normalized",
    "bnm",
    "bridge",
    "bsp",
    "cdd",
    "class_matrix",
    "class_weights",
    "cmd",
    "consistency",
    "coral",
    "coral_mean",
    "cst",
    "deepjdot",
    "diversity",
    "domain_adversarial",
    "domain_confusion",
    "domain_risks",
    "energy_distance",
    "entropy_weights",
    "fishr",
    "fixmatch",
    "flexible_thresholds",
    "flexmatch",
    "fourier_swap",
    "gradient_penalty",
    "gradient_reversal",
    "group_weights",
    "head_variances",
    "homm",
    "iga",
    "importance_weights",
    "infomax",
    "irm",
    "irm_unbiased",
    "jmmd",
    "jmmd_unbiased",
    "lmmd",
    "map_labels",
    "map_logits",
    "map_probabilities",
    "mcc",
    "mcd",
    "mdd",
    "median_bandwidth",
    "mixup",
    "mldg",
    "mmd",
    "mmd_linear",
    "mmd_unbiased",
    "multilinear",
    "multilinear_random",
    "nearest_class_mean",
    "neighbourhood",
    "normalize_features",
    "osbp",
    "pseudo_label",
    "remember",
    "remember_centres",
    "remember_labels",
    "rsd",
    "sd",
    "self_ensembling",
    "self_information",
    "shot_labels",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "symnets_category",
    "symnets_confusion",
    "symnets_domain",
    "symnets_entropy",
    "tsallis",
    "tsallis_balanced",
    "uda",
    "variance_gap",
    "vat",
    "vrex",
    "wdgrl",
    "weighted_domain_adversarial",
]

_TERMS = ("advent", "cdan", "cdan_e", "dann", "groupdro", "gvb", "gvb_e", "iwan", "multilevel", "pada", "symnets")


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        """Say where a method is that has parameters or a state, and so is a ready term."""
        where = f"; it is a ready term: tt.terms.{name}" if name in _TERMS else ""
        where = where if where or name.startswith("_") else nearest(name, __all__)
        raise AttributeError(f"module 'ttransfer.align' has no attribute {name!r}{where}")
