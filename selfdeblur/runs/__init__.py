"""Runs over folders: the command line, images one after the other, results, checkpoints, memory."""
