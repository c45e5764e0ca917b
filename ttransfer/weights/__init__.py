"""WeightMaps: checkpoint -> parameters, pure and differentiable, with a dry run."""

from __future__ import annotations

from ttransfer.weights._adapt_input_conv import adapt_input_conv
from ttransfer.weights._as_reparam import as_reparam
from ttransfer.weights._average import average, greedy_soup, wise_ft
from ttransfer.weights._batch_statistics import batch_statistics
from ttransfer.weights._bn_pairs import bn_pairs
from ttransfer.weights._by_layer import by_layer
from ttransfer.weights._by_part import by_part
from ttransfer.weights._cast import cast
from ttransfer.weights._chain import chain
from ttransfer.weights._channel_groups import channel_groups
from ttransfer.weights._channel_importance import channel_importance, most_important
from ttransfer.weights._compare import Comparison, compare
from ttransfer.weights._concatenate import concatenate, split
from ttransfer.weights._fisher import empirical_fisher, fisher, fisher_diagonal
from ttransfer.weights._fold_bn import BnPair, fold_bn
from ttransfer.weights._folded import folded
from ttransfer.weights._graph_matching import graph_matching
from ttransfer.weights._groups import Axis, Group, permute_channels
from ttransfer.weights._inflate import inflate, inflate_centre
from ttransfer.weights._interpolate_pos_embed import interpolate_pos_embed, interpolate_pos_embed_corners
from ttransfer.weights._karcher import karcher
from ttransfer.weights._ligo import ligo
from ttransfer.weights._ligo_start import interlace_layers, ligo_start, stack_layers
from ttransfer.weights._load import load
from ttransfer.weights._load_lora import load_lora
from ttransfer.weights._match import match, match_by_name, match_by_order, match_by_shape
from ttransfer.weights._merge_lora import merge_lora
from ttransfer.weights._model_stock import model_stock
from ttransfer.weights._net2deeper import net2deeper
from ttransfer.weights._net2wider import net2wider
from ttransfer.weights._ot_fusion import ot_alignment
from ttransfer.weights._permute_layout import permute_layout
from ttransfer.weights._pool import pool, within
from ttransfer.weights._regmean import input_grams, regmean
from ttransfer.weights._remap_head import remap_head
from ttransfer.weights._rename import rename
from ttransfer.weights._repair import repair
from ttransfer.weights._reset_head import reset_head
from ttransfer.weights._reshape import reshape
from ttransfer.weights._resize_rel_pos import resize_rel_pos, resize_rel_pos_geometric
from ttransfer.weights._save import save
from ttransfer.weights._select import drop, select
from ttransfer.weights._show import show
from ttransfer.weights._slerp import slerp
from ttransfer.weights._slice_channels import slice_channels
from ttransfer.weights._task_vectors import dare, task_arithmetic
from ttransfer.weights._ties import ties, ties_thresholds
from ttransfer.weights._transfer import transfer
from ttransfer.weights._transport import transport_channels
from ttransfer.weights._weight_matching import weight_matching
from ttransfer.weights._weight_selection import weight_selection

__all__ = [
    "Axis",
    "BnPair",
    "Comparison",
    "Group",
    "adapt_input_conv",
    "as_reparam",
    "average",
    "batch_statistics",
    "bn_pairs",
    "by_layer",
    "by_part",
    "cast",
    "chain",
    "channel_groups",
    "channel_importance",
    "compare",
    "concatenate",
    "dare",
    "drop",
    "empirical_fisher",
    "fisher",
    "fisher_diagonal",
    "fold_bn",
    "folded",
    "graph_matching",
    "greedy_soup",
    "inflate",
    "inflate_centre",
    "input_grams",
    "interlace_layers",
    "interpolate_pos_embed",
    "interpolate_pos_embed_corners",
    "karcher",
    "ligo",
    "ligo_start",
    "load",
    "load_lora",
    "match",
    "match_by_name",
    "match_by_order",
    "match_by_shape",
    "merge_lora",
    "model_stock",
    "most_important",
    "net2deeper",
    "net2wider",
    "ot_alignment",
    "permute_channels",
    "permute_layout",
    "pool",
    "regmean",
    "remap_head",
    "rename",
    "repair",
    "reset_head",
    "reshape",
    "resize_rel_pos",
    "resize_rel_pos_geometric",
    "save",
    "select",
    "show",
    "slerp",
    "slice_channels",
    "split",
    "stack_layers",
    "task_arithmetic",
    "ties",
    "ties_thresholds",
    "transfer",
    "transport_channels",
    "weight_matching",
    "weight_selection",
    "wise_ft",
    "within",
]
