"""Attention, as parts that compose."""
