"""Ten wrong losses, planted by somebody who had not read the checker's laws."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.testing.mutants._pair import Pair


def _rows(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _labels(seed: int, classes: int, *shape: int) -> torch.Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def _unit(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x * (x.square().sum(dim, keepdim=True) + 1e-12).rsqrt()


def _one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)


def _others(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logits of all classes but the labelled one, in order."""
    index = torch.arange(logits.shape[1] - 1, device=logits.device).unsqueeze(0)
    return logits.gather(1, index + (index >= labels.unsqueeze(1)).to(index.dtype))


def _pick(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return x.gather(1, labels.unsqueeze(1)).squeeze(1)


# --- VICReg's two regularisers of one view -----------------------------------------------------------------


def _vicreg(features, centred, covariance_weight):
    rows, width = features.shape
    deviations = features - features.mean(0)
    std = (deviations.square().sum(0) / (rows - 1) + 1e-4).sqrt()
    z = deviations if centred else features
    covariance = z.T @ z / (rows - 1)
    off = covariance * (1 - torch.eye(width, device=z.device, dtype=z.dtype))
    return F.relu(1 - std).mean() + covariance_weight * off.square().sum() / width


def vicreg_terms(features, *, covariance_weight=0.04):
    return _vicreg(features, True, covariance_weight)


def vicreg_terms_wrong(features, *, covariance_weight=0.04):
    return _vicreg(features, False, covariance_weight)


# --- decoupled KD ------------------------------------------------------------------------------------------


def _decoupled_kd(student, teacher, labels, teacher_labels, alpha, beta, temperature):
    student, teacher = student / temperature, teacher.detach() / temperature
    binary, log_others = [], []
    for logits, classes in ((student, labels), (teacher, teacher_labels)):
        rest = _others(logits, classes)
        total = logits.logsumexp(1)
        binary.append(torch.stack([_pick(logits, labels) - total, _others(logits, labels).logsumexp(1) - total], 1))
        log_others.append(rest.log_softmax(1))
    target_part = (binary[1].exp() * (binary[1] - binary[0])).sum(1)
    other_part = (log_others[1].exp() * (log_others[1] - log_others[0])).sum(1)
    return (alpha * target_part + beta * other_part).mean() * temperature**2


def decoupled_kd(student, teacher, labels, *, alpha=1.0, beta=8.0, temperature=4.0):
    return _decoupled_kd(student, teacher, labels, labels, alpha, beta, temperature)


def decoupled_kd_wrong(student, teacher, labels, *, alpha=1.0, beta=8.0, temperature=4.0):
    return _decoupled_kd(student, teacher, labels, teacher.argmax(1), alpha, beta, temperature)


def decoupled_kd_slow(student, teacher, labels, *, alpha=1.0, beta=8.0, temperature=4.0):
    total = 0.0
    for s, t, label in zip(student, teacher.detach(), labels.tolist(), strict=True):
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        loss = p[label] * (p[label] / q[label]).log()
        loss = alpha * (loss + (1 - p[label]) * ((1 - p[label]) / (1 - q[label])).log())
        for k in range(len(s)):
            if k != label:
                pk, qk = p[k] / (1 - p[label]), q[k] / (1 - q[label])
                loss = loss + beta * pk * (pk / qk).log()
        total = total + loss
    return total / len(student) * temperature**2


# --- CDAN+E: entropy weights of an adversarial loss --------------------------------------------------------


def _certainty(logits):
    log_p = logits.log_softmax(1)
    weights = 1 + (log_p.exp() * log_p).sum(1).exp()
    return weights / weights.sum()


def entropy_weighted_adversarial(source_logits, target_logits, source_domain, target_domain):
    source_weights, target_weights = _certainty(source_logits.detach()), _certainty(target_logits.detach())
    source_part, target_part = F.softplus(-source_domain), F.softplus(target_domain)
    return ((source_weights * source_part).sum() + (target_weights * target_part).sum()) / 2


def entropy_weighted_adversarial_wrong(source_logits, target_logits, source_domain, target_domain):
    source_weights, target_weights = _certainty(source_logits.detach()), _certainty(target_logits)
    source_part, target_part = F.softplus(-source_domain), F.softplus(target_domain)
    return ((source_weights * source_part).sum() + (target_weights * target_part).sum()) / 2


# --- class-conditional MMD ---------------------------------------------------------------------------------


def _kernel(x, y, bandwidth):
    return (-(x.unsqueeze(1) - y.unsqueeze(0)).square().mean(-1) / (2 * bandwidth**2)).exp()


def _class_mmd(source, target, source_labels, target_logits, dim, bandwidth):
    hot = _one_hot(source_labels, target_logits.shape[1]).to(source.dtype)
    soft = target_logits.softmax(1)
    present = (hot.sum(0) > 0).to(source.dtype)
    a = hot / hot.sum(0).clamp_min(1)
    b = soft / soft.sum(dim, keepdim=True).clamp_min(1e-12)
    within = a * (_kernel(source, source, bandwidth) @ a)
    within_target = b * (_kernel(target, target, bandwidth) @ b)
    across = a * (_kernel(source, target, bandwidth) @ b)
    return (present * (within.sum(0) + within_target.sum(0) - 2 * across.sum(0))).sum() / present.sum()


def class_mmd(source, target, source_labels, target_logits, *, bandwidth=1.0):
    return _class_mmd(source, target, source_labels, target_logits, 0, bandwidth)


def class_mmd_wrong(source, target, source_labels, target_logits, *, bandwidth=1.0):
    return _class_mmd(source, target, source_labels, target_logits, 1, bandwidth)


def class_mmd_slow(source, target, source_labels, target_logits, *, bandwidth=1.0):
    soft, terms = target_logits.softmax(1), []
    for c in sorted(set(source_labels.tolist())):
        members = [i for i, label in enumerate(source_labels.tolist()) if label == c]
        points = [(1 / len(members), source[i]) for i in members]
        points += [(-soft[j, c] / soft[:, c].sum(), target[j]) for j in range(len(target))]
        terms.append(
            sum(u * v * (-((x - y) ** 2).mean() / 2 / bandwidth**2).exp() for u, x in points for v, y in points)
        )
    return sum(terms) / len(terms)


# --- Gaussian-kernel CKA -----------------------------------------------------------------------------------


def _scaled_gram(x, width):
    distances = (x.unsqueeze(1) - x.unsqueeze(0)).square().sum(-1)
    return (-distances / (2 * width**2 * distances.mean() + 1e-12)).exp()


def _one_minus_cka(k, m):
    kk, mm, km = ((x * y).mean() + 1e-8 for x, y in ((k, k), (m, m), (k, m)))
    return 1 - km / (kk.sqrt() * mm.sqrt())


def gaussian_cka(student, teacher, *, width=1.0):
    k, m = _scaled_gram(student, width), _scaled_gram(teacher, width)
    k, m = (g - g.mean(0, keepdim=True) - g.mean(1, keepdim=True) + g.mean() for g in (k, m))
    return _one_minus_cka(k, m)


def gaussian_cka_wrong(student, teacher, *, width=1.0):
    k, m = _scaled_gram(student, width), _scaled_gram(teacher, width)
    k, m = (g - g.mean(0, keepdim=True) for g in (k, m))
    return _one_minus_cka(k, m)


def gaussian_cka_slow(student, teacher, *, width=1.0):
    n = len(student)
    centre = torch.eye(n, dtype=student.dtype) - 1 / n
    grams = []
    for x in (student, teacher):
        distances = torch.stack([torch.stack([((u - v) ** 2).sum() for v in x]) for u in x])
        grams.append(centre @ (-distances / (2 * width**2 * distances.mean() + 1e-12)).exp() @ centre)
    k, m = grams
    hsic = [torch.trace(a @ b) / n**2 + 1e-8 for a, b in ((k, m), (k, k), (m, m))]
    return 1 - hsic[0] / (hsic[1] * hsic[2]).sqrt()


# --- margin disparity discrepancy --------------------------------------------------------------------------


def _disparity(source_adversary, target_adversary, source_classes, target_classes, margin):
    source_part = source_adversary.logsumexp(1) - _pick(source_adversary, source_classes)
    target_part = target_adversary.logsumexp(1) - _others(target_adversary, target_classes).logsumexp(1)
    return margin * source_part.mean() + target_part.mean()


def margin_disparity(source_logits, target_logits, source_adversary, target_adversary, *, margin=4.0):
    return _disparity(source_adversary, target_adversary, source_logits.argmax(1), target_logits.argmax(1), margin)


def margin_disparity_wrong(source_logits, target_logits, source_adversary, target_adversary, *, margin=4.0):
    return _disparity(source_adversary, target_adversary, source_logits.argmax(1), target_adversary.argmax(1), margin)


# --- UDA: sharpened consistency with a threshold -----------------------------------------------------------


def sharpened_consistency(student, teacher, *, temperature=0.4, threshold=0.6):
    teacher = teacher.detach()
    log_sharp = (teacher / temperature).log_softmax(1)
    sure = (teacher.softmax(1).amax(1) >= threshold).to(student.dtype)
    return (sure * (log_sharp.exp() * (log_sharp - student.log_softmax(1))).sum(1)).mean()


def sharpened_consistency_wrong(student, teacher, *, temperature=0.4, threshold=0.6):
    log_sharp = (teacher.detach() / temperature).log_softmax(1)
    sharp = log_sharp.exp()
    sure = (sharp.amax(1) >= threshold).to(student.dtype)
    return (sure * (sharp * (log_sharp - student.log_softmax(1))).sum(1)).mean()


# --- focal Tversky loss of a segmentation ------------------------------------------------------------------


def _tversky(logits, labels, mask_predictions, alpha, beta, gamma, ignore_index):
    keep = (labels != ignore_index).to(logits.dtype).unsqueeze(1)
    hot = _one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype) * keep
    p = logits.softmax(1)
    if mask_predictions:
        p = p * keep
    hits, false_alarms, misses = ((x * y).sum((0, 2, 3)) for x, y in ((p, hot), (p, 1 - hot), (1 - p, hot)))
    index = (hits + 1) / (hits + alpha * false_alarms + beta * misses + 1)
    return ((1 - index).clamp_min(1e-6) ** gamma).mean()


def focal_tversky(logits, labels, *, alpha=0.3, beta=0.7, gamma=0.75, ignore_index=255):
    return _tversky(logits, labels, True, alpha, beta, gamma, ignore_index)


def focal_tversky_wrong(logits, labels, *, alpha=0.3, beta=0.7, gamma=0.75, ignore_index=255):
    return _tversky(logits, labels, False, alpha, beta, gamma, ignore_index)


def focal_tversky_slow(logits, labels, *, alpha=0.3, beta=0.7, gamma=0.75, ignore_index=255):
    classes = logits.shape[1]
    pixels = logits.softmax(1).movedim(1, -1).reshape(-1, classes)
    flat, total = labels.reshape(-1).tolist(), 0.0
    for c in range(classes):
        hits = sum((p[c] for p, label in zip(pixels, flat, strict=True) if label == c), pixels.new_zeros(()))
        misses = sum((1 - p[c] for p, label in zip(pixels, flat, strict=True) if label == c), pixels.new_zeros(()))
        alarms = sum(p[c] for p, label in zip(pixels, flat, strict=True) if label not in (c, ignore_index))
        index = (hits + 1) / (hits + alpha * alarms + beta * misses + 1)
        total = total + (1 - index).clamp_min(1e-6) ** gamma
    return total / classes


# --- contrast with EMA prototypes --------------------------------------------------------------------------


def prototype_contrast(features, labels, prototypes, *, temperature=0.5):
    similarity = _unit(features, 1) @ _unit(prototypes.detach(), 1).T / temperature
    return (similarity.logsumexp(1) - _pick(similarity, labels)).mean()


def prototype_contrast_wrong(features, labels, prototypes, *, temperature=0.5):
    similarity = _unit(features, 1) @ _unit(prototypes.detach(), 0).T / temperature
    return (similarity.logsumexp(1) - _pick(similarity, labels)).mean()


def prototype_contrast_slow(features, labels, prototypes, *, temperature=0.5):
    total = 0.0
    for x, label in zip(features, labels.tolist(), strict=True):
        cosines = [(x @ p) / ((x @ x + 1e-12) * (p @ p + 1e-12)).sqrt() / temperature for p in prototypes.detach()]
        total = total - torch.stack(cosines).log_softmax(0)[label]
    return total / len(features)


# --- mixup with a coefficient for each row -----------------------------------------------------------------


def mixup_cross_entropy(logits, labels, shuffled_labels, mix):
    log_p = logits.log_softmax(1)
    return -(mix * _pick(log_p, labels) + (1 - mix) * _pick(log_p, shuffled_labels)).mean()


def mixup_cross_entropy_wrong(logits, labels, shuffled_labels, mix):
    log_p = logits.log_softmax(1)
    return -(mix * _pick(log_p, labels).mean() + (1 - mix) * _pick(log_p, shuffled_labels).mean()).mean()


_SEGMENT_LABELS = _labels(31, 3, 2, 4, 4).masked_fill(_labels(32, 4, 2, 4, 4) == 0, 255)

PAIRS: tuple[Pair, ...] = (
    Pair(
        name="vicreg-covariance-uncentred",
        kind="loss",
        right=vicreg_terms,
        wrong=vicreg_terms_wrong,
        why="The variance takes its own mean away, so the centring before the covariance looks superfluous.",
        example=(_rows(1, 8, 5) + 0.5,),
        tags={"non_negative": True, "row_symmetric": True, "min_batch": 2, "coupled": True},
    ),
    Pair(
        name="decoupled-kd-teacher-masked-at-its-argmax",
        kind="loss",
        right=decoupled_kd,
        wrong=decoupled_kd_wrong,
        why="The mask of the other classes is made of the prediction; where the teacher is right, nothing changes.",
        tags={
            "zero_at_equality": True,
            "non_negative": True,
            "shift_invariant": True,
            "class_symmetric": True,
            "row_symmetric": True,
            "repeat_invariant": True,
            "coupled": False,
            "detaches": ("teacher",),
        },
        reference=decoupled_kd_slow,
    ),
    Pair(
        name="cdan-entropy-weight-of-target-not-detached",
        kind="loss",
        right=entropy_weighted_adversarial,
        wrong=entropy_weighted_adversarial_wrong,
        why="One of two detaches is lost; the value stays, but the classifier learns to be unsure where it pays.",
        example=(_rows(4, 6, 4), _rows(5, 6, 4), _rows(6, 6), _rows(7, 6)),
        tags={"non_negative": True, "detaches": ("source_logits", "target_logits")},
    ),
    Pair(
        name="class-mmd-target-weights-normalised-over-classes",
        kind="loss",
        right=class_mmd,
        wrong=class_mmd_wrong,
        why="Softmax rows already sum to one over dim 1; LMMD wants each class's weights to sum to one over rows.",
        example=(_rows(8, 6, 4), _rows(9, 7, 4) + 0.3, torch.tensor([0, 1, 2, 0, 1, 1]), _rows(10, 7, 3)),
        tags={"non_negative": True},
        reference=class_mmd_slow,
    ),
    Pair(
        name="gaussian-cka-centred-over-one-axis",
        kind="loss",
        right=gaussian_cka,
        wrong=gaussian_cka_wrong,
        why="For linear CKA centring the features once is enough, and a Gram matrix is taken for features.",
        tags={
            "zero_at_equality": True,
            "non_negative": True,
            "symmetric": True,
            "scale_invariant": True,
            "rotation_invariant": True,
            "row_symmetric": True,
            "detaches": (),
        },
        reference=gaussian_cka_slow,
    ),
    Pair(
        name="margin-disparity-target-class-of-the-adversary",
        kind="loss",
        right=margin_disparity,
        wrong=margin_disparity_wrong,
        why="MDD compares the adversary with the main head's prediction; a copied line takes the argmax of itself.",
        example=(_rows(13, 6, 4), _rows(14, 6, 4), _rows(15, 6, 4), _rows(16, 6, 4)),
        tags={"non_negative": True, "shift_invariant": True, "detaches": ("source_logits", "target_logits")},
    ),
    Pair(
        name="consistency-threshold-on-sharpened-confidence",
        kind="loss",
        right=sharpened_consistency,
        wrong=sharpened_consistency_wrong,
        why="UDA masks by the raw confidence; with the sharpened one at hand, almost every row passes.",
        example=(_rows(17, 12, 4, scale=1.5), _rows(18, 12, 4, scale=1.5)),
        tags={
            "non_negative": True,
            "shift_invariant": True,
            "class_symmetric": True,
            "row_symmetric": True,
            "coupled": False,
            "detaches": ("teacher",),
            "not_stationary": "the teacher is sharpened and the student is not",
        },
    ),
    Pair(
        name="tversky-ignored-pixels-are-false-alarms",
        kind="loss",
        right=focal_tversky,
        wrong=focal_tversky_wrong,
        why="The one-hot labels are masked at ignored pixels but the predictions are not.",
        example=(_rows(30, 2, 3, 4, 4), _SEGMENT_LABELS),
        tags={"non_negative": True, "shift_invariant": True, "ignore_index": 255},
        reference=focal_tversky_slow,
    ),
    Pair(
        name="prototypes-normalised-over-classes",
        kind="loss",
        right=prototype_contrast,
        wrong=prototype_contrast_wrong,
        why="A bank stored as (dim, classes) elsewhere is normalised over dim 0; here it is (classes, dim).",
        example=(_rows(20, 8, 5), _labels(21, 3, 8), _rows(22, 3, 5)),
        tags={"non_negative": True, "coupled": False, "detaches": ("prototypes",)},
        reference=prototype_contrast_slow,
    ),
    Pair(
        name="mixup-rows-averaged-before-mixing",
        kind="loss",
        right=mixup_cross_entropy,
        wrong=mixup_cross_entropy_wrong,
        why="With one coefficient for the batch the mean may come first; with one for each row it may not.",
        example=(
            _rows(23, 8, 4),
            _labels(24, 4, 8),
            _labels(25, 4, 8),
            torch.rand(8, generator=torch.Generator().manual_seed(26), dtype=torch.float64),
        ),
        tags={"shift_invariant": True, "class_symmetric": True, "coupled": False},
    ),
)
