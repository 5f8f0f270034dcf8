"""How many replicas a load needs: a pure state machine that is asked every few seconds."""

from flotilla.domain.scaling.decide import decide
from flotilla.domain.scaling.reasons import NOT_FOLLOWING, STALE
from flotilla.domain.scaling.state import Decision, Demand, Need, Sample, ScalingSpec, State

__all__ = ["NOT_FOLLOWING", "STALE", "Decision", "Demand", "Need", "Sample", "ScalingSpec", "State", "decide"]
