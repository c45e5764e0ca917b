"""MONAI's losses of segmentation as pure functions, for terms."""

from __future__ import annotations

from ttransfer_ext.monai._losses import batch_dice, dice, dice_ce

__all__ = ["batch_dice", "dice", "dice_ce"]
