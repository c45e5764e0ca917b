"""What `make bench-losses` measured and wrote: (loss, peer) -> the peer's time by ours, eager and compiled."""

from __future__ import annotations

__all__ = ["SPEEDS"]

SPEEDS: dict[tuple[str, str], tuple[float, float]] = {
    ("losses.ab", "torchdistill"): (1.81, 6.33),
    ("losses.affinity", "torchdistill"): (37.1, 21.7),
    ("losses.at", "torchdistill"): (1.11, 0.989),
    ("losses.bss", "zhijian"): (1.21, 1.16),
    ("losses.cc", "zhijian"): (0.901, 0.94),
    ("losses.dist", "torchdistill"): (1.41, 1.35),
    ("losses.fitnet", "zhijian"): (0.96, 0.997),
    ("losses.ft", "zhijian"): (0.846, 0.77),
    ("losses.hcl", "torchdistill"): (1.14, 1.09),
    ("losses.ickd", "torchdistill"): (0.986, 0.976),
    ("losses.irg", "zhijian"): (3.28, 1.54),
    ("losses.kd", "modelopt"): (1.48, 1.17),
    ("losses.logit_mse", "torch"): (0.91, 0.956),
    ("losses.nst", "zhijian"): (28, 4.56),
    ("losses.pkt", "torchdistill"): (0.995, 1.42),
    ("losses.rkd", "torchdistill"): (6.23, 4.66),
    ("losses.skd_instance", "torchdistill"): (1.34, 1.05),
    ("losses.sp", "zhijian"): (0.852, 0.977),
    ("losses.standardized_kd", "torchdistill"): (1.42, 1.05),
    ("losses.vid", "torchdistill"): (1.23, 0.979),
}
