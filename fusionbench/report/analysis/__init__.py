"""Records to decisions: contrasts, verdicts, tied sets and cell intervals of one condition.

The arithmetic is `fusionbench.stats`; here it is decided what is compared with what, which
questions form a family, and what is said where a comparison is not possible. No torch.
"""

from fusionbench.report.analysis.analysis import Analysis, analyse, analyse_all
from fusionbench.report.analysis.rows import ContrastRow

__all__ = ["Analysis", "ContrastRow", "analyse", "analyse_all"]
