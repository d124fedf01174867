"""A scripted weak programmer for MBPP: the paper's Table 3 on code without a language model."""

from studies.weak_programmer.policy import WeakProgrammer

__all__ = ["WeakProgrammer"]
