"""Put losses, terms, adapters, maps, optimizers and steps on trial: which laws do they obey?"""

from __future__ import annotations

from ttransfer.testing import strategies
from ttransfer.testing._adapters import adapter_trial, check_adapter
from ttransfer.testing._golden import check_golden, golden_cases, write_golden
from ttransfer.testing._law import Broken, Law, LawBroken, Outcome, Report, Trial, judge, law
from ttransfer.testing._losses import check_loss, loss_trial
from ttransfer.testing._optimizers import check_optimizer, optimizer_trial
from ttransfer.testing._pytest import parametrize_with_checks
from ttransfer.testing._reparams import check_reparam, reparam_trial
from ttransfer.testing._steps import check_step, step_trial
from ttransfer.testing._tags import Tags
from ttransfer.testing._terms import check_term, term_trial
from ttransfer.testing._weight_maps import check_weight_map, weight_map_trial

__all__ = [
    "Broken",
    "Law",
    "LawBroken",
    "Outcome",
    "Report",
    "Tags",
    "Trial",
    "adapter_trial",
    "check_adapter",
    "check_golden",
    "check_loss",
    "check_optimizer",
    "check_reparam",
    "check_step",
    "check_term",
    "check_weight_map",
    "golden_cases",
    "judge",
    "law",
    "loss_trial",
    "optimizer_trial",
    "parametrize_with_checks",
    "reparam_trial",
    "step_trial",
    "strategies",
    "term_trial",
    "weight_map_trial",
    "write_golden",
]
