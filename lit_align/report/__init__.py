"""What the runs of a group reached: exact numbers on mini_instruct, what they logged elsewhere, a table and a picture."""

from lit_align.report.exact import Comparison, Result, compare_exactly, reward_table
from lit_align.report.runs import Run, read_group

__all__ = ["Comparison", "Result", "Run", "compare_exactly", "read_group", "reward_table"]
