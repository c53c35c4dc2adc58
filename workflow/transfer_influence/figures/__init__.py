"""Figures and tables of the report, drawn from the result files."""
