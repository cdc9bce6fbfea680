"""What was compiled, as plain data and as text: all levels of a net, the story of a node, what two nets differ in."""

from graphc.inspection.describe import Inspected, call_rows, describe, entry_data, graph_rows, plan_data
from graphc.inspection.diff import Difference, differences
from graphc.inspection.explain import explain
from graphc.inspection.page import report

__all__ = [
    "Difference",
    "Inspected",
    "call_rows",
    "describe",
    "differences",
    "entry_data",
    "explain",
    "graph_rows",
    "plan_data",
    "report",
]
