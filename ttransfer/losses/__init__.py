"""Losses as plain functions: tensors in, one scalar out."""

from __future__ import annotations

from ttransfer.losses._ab import ab
from ttransfer.losses._afd import afd, afd_channels
from ttransfer.losses._at import at
from ttransfer.losses._bi_tuning import categorical_contrast, contrastive_cross_entropy
from ttransfer.losses._bss import bss
from ttransfer.losses._cat_kd import cat_kd
from ttransfer.losses._cc import cc, cc_bilinear
from ttransfer.losses._co_tuning import category_relation, co_tuning
from ttransfer.losses._crd import crd, crd_in_batch
from ttransfer.losses._cs_kd import cs_kd
from ttransfer.losses._ctkd import ctkd
from ttransfer.losses._cwd import cwd
from ttransfer.losses._deit import deit_hard, deit_soft
from ttransfer.losses._delta import delta
from ttransfer.losses._dist import dist, dist_plus
from ttransfer.losses._dkd import dkd
from ttransfer.losses._entropy import entropy
from ttransfer.losses._ewc import ewc, fisher
from ttransfer.losses._fgd import box_mask, fgd_focal, fgd_global
from ttransfer.losses._fitnet import fitnet
from ttransfer.losses._fsp import fsp
from ttransfer.losses._ft import ft, ft_maps
from ttransfer.losses._hcl import hcl
from ttransfer.losses._ickd import ickd
from ttransfer.losses._imitation import feature_imitation
from ttransfer.losses._irg import irg, irg_transform
from ttransfer.losses._kd import kd
from ttransfer.losses._kta import affinity, kta
from ttransfer.losses._l2_sp import l2, l2_sp
from ttransfer.losses._label_smoothing import label_smoothing
from ttransfer.losses._lwf import lwf
from ttransfer.losses._lwm import lwm
from ttransfer.losses._mgd import mgd
from ttransfer.losses._mlld import mlld
from ttransfer.losses._mobilebert import mobilebert_attention, mobilebert_hidden
from ttransfer.losses._multi_teacher import max_logits, mean_logits, mean_probabilities, multi_teacher_kd
from ttransfer.losses._mutual import mutual
from ttransfer.losses._nkd import nkd
from ttransfer.losses._nst import nst
from ttransfer.losses._ofd import ofd, ofd_margin
from ttransfer.losses._pad import pad
from ttransfer.losses._patient_kd import patient_kd
from ttransfer.losses._pkd import pkd
from ttransfer.losses._pkt import pkt
from ttransfer.losses._queue_similarity import queue_similarity, token_similarity
from ttransfer.losses._r_drop import r_drop
from ttransfer.losses._refilled import refilled, refilled_local
from ttransfer.losses._rkd import rkd, rkd_angle, rkd_distance
from ttransfer.losses._segmentation import boundary_kd, pixel_kd
from ttransfer.losses._self_distillation import self_distillation
from ttransfer.losses._skd import skd_direction, skd_instance
from ttransfer.losses._sobolev import jacobian_matching, sobolev
from ttransfer.losses._soft import logit_mse, soft_cross_entropy
from ttransfer.losses._sp import sp
from ttransfer.losses._srd import srd
from ttransfer.losses._sskd import sskd, sskd_transformed
from ttransfer.losses._standardize import standardize, standardized_kd
from ttransfer.losses._tf_kd import tf_kd
from ttransfer.losses._tinybert import tinybert_attention, tinybert_hidden
from ttransfer.losses._topk import save_topk, topk_kd
from ttransfer.losses._vid import vid
from ttransfer.losses._vitkd import vitkd
from ttransfer.losses._wsld import wsld
from ttransfer.losses._yolo import yolo_kd

__all__ = [
    "ab",
    "afd",
    "afd_channels",
    "affinity",
    "at",
    "boundary_kd",
    "box_mask",
    "bss",
    "cat_kd",
    "categorical_contrast",
    "category_relation",
    "cc",
    "cc_bilinear",
    "co_tuning",
    "contrastive_cross_entropy",
    "crd",
    "crd_in_batch",
    "cs_kd",
    "ctkd",
    "cwd",
    "deit_hard",
    "deit_soft",
    "delta",
    "dist",
    "dist_plus",
    "dkd",
    "entropy",
    "ewc",
    "feature_imitation",
    "fgd_focal",
    "fgd_global",
    "fisher",
    "fitnet",
    "fsp",
    "ft",
    "ft_maps",
    "hcl",
    "ickd",
    "irg",
    "irg_transform",
    "jacobian_matching",
    "kd",
    "kta",
    "l2",
    "l2_sp",
    "label_smoothing",
    "logit_mse",
    "lwf",
    "lwm",
    "max_logits",
    "mean_logits",
    "mean_probabilities",
    "mgd",
    "mlld",
    "mobilebert_attention",
    "mobilebert_hidden",
    "multi_teacher_kd",
    "mutual",
    "nkd",
    "nst",
    "ofd",
    "ofd_margin",
    "pad",
    "patient_kd",
    "pixel_kd",
    "pkd",
    "pkt",
    "queue_similarity",
    "r_drop",
    "refilled",
    "refilled_local",
    "rkd",
    "rkd_angle",
    "rkd_distance",
    "save_topk",
    "self_distillation",
    "skd_direction",
    "skd_instance",
    "sobolev",
    "soft_cross_entropy",
    "sp",
    "srd",
    "sskd",
    "sskd_transformed",
    "standardize",
    "standardized_kd",
    "tf_kd",
    "tinybert_attention",
    "tinybert_hidden",
    "token_similarity",
    "topk_kd",
    "vid",
    "vitkd",
    "wsld",
    "yolo_kd",
]
