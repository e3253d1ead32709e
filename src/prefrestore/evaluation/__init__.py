"""Metric table, significance, uncertainty, report."""
