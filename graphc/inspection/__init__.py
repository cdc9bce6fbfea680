"""What was compiled, as plain data and as text: all levels of a net, the story of a node, what two nets differ in."""

from graphc.inspection.describe import call_rows, describe, graph_rows, plan_data
from graphc.inspection.diff import Difference, differences
from graphc.inspection.explain import explain
from graphc.inspection.page import report

__all__ = [
    "Difference",
    "call_rows",
    "describe",
    "differences",
    "explain",
    "graph_rows",
    "plan_data",
    "report",
]
