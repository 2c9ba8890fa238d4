"""Answers about code and objects, while cells run."""
