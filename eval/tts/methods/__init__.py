"""The test-time methods by name; each is a frozen dataclass of knobs, whose defaults are the paper's."""

from __future__ import annotations

from typing import Any

from reasonrl.eval.tts.methods.beam_search import BeamSearch
from reasonrl.eval.tts.methods.best_of_n import BestOfN
from reasonrl.eval.tts.methods.fttt import FTTT
from reasonrl.eval.tts.methods.greedy import Greedy
from reasonrl.eval.tts.methods.optune import OpTune
from reasonrl.eval.tts.methods.revision import Revision
from reasonrl.eval.tts.methods.self_consistency import SelfConsistency
from reasonrl.eval.tts.methods.self_refine import SelfRefine

METHODS: dict[str, Any] = {
    each.name: each for each in (Greedy, Revision, BeamSearch, BestOfN, SelfRefine, SelfConsistency, FTTT, OpTune)
}
