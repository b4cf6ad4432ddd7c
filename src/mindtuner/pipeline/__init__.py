"""What a researcher does in a day, as functions and plain objects: the library's front door.

Nothing here prints, parses, or knows a command line.
"""

from mindtuner.pipeline.base import Base, pretrain
from mindtuner.pipeline.decoder import Retrieved, SubjectDecoder
from mindtuner.pipeline.demo import run_demo, simulate
from mindtuner.pipeline.evaluation import evaluate
from mindtuner.pipeline.features import Features, embed
from mindtuner.pipeline.fitting import fit
from mindtuner.pipeline.folds import FittedFolds, evaluate_folds, fit_folds
from mindtuner.pipeline.picture_scores import PictureScores, score_pictures
from mindtuner.pipeline.results import Comparison, Results
from mindtuner.pipeline.stages import Scoring
from mindtuner.pipeline.stopwatch import Stopwatch
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.pipeline.tuning import tune

__all__ = [
    "Base",
    "Comparison",
    "Features",
    "FittedFolds",
    "PictureScores",
    "Results",
    "Retrieved",
    "Scoring",
    "Stopwatch",
    "SubjectDecoder",
    "TunedSubject",
    "embed",
    "evaluate",
    "evaluate_folds",
    "fit",
    "fit_folds",
    "pretrain",
    "run_demo",
    "score_pictures",
    "simulate",
    "tune",
]
