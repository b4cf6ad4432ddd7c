"""What the method owes to which of its parts: studies over many tunings, each with its page and table."""

from mindtuner.studies.fingerprint_maps import FingerprintMaps, map_fingerprint
from mindtuner.studies.run import Study, run_ablation, run_curve

__all__ = ["FingerprintMaps", "Study", "map_fingerprint", "run_ablation", "run_curve"]
