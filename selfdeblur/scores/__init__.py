"""Scores: metrics, scoring of results, tables, the report page."""
