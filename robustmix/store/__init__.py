"""Runs, cells and tables as files of a workspace. No torch."""
