"""HTML report of a run: its table, its pictures under every method's maps, its curves."""

from xattn.report.writing import report

__all__ = ["report"]
