"""Decoding while a person is scanned: trials as they arrive in a folder, and a page that shows what each says."""

from mindtuner.live.arrivals import Arrival, Broken, WatchedFolder, trial_reader
from mindtuner.live.following import follow
from mindtuner.live.page import LivePage
from mindtuner.live.running import RunningZScore
from mindtuner.live.session import LiveSession

__all__ = ["Arrival", "Broken", "LivePage", "LiveSession", "RunningZScore", "WatchedFolder", "follow", "trial_reader"]
