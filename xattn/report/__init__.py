"""A page of HTML on which a run is looked through: its table, its pictures under every method's maps, its curves."""

from xattn.report.writing import report

__all__ = ["report"]
