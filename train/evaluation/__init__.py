"""Scores as the papers report them: data sets, protocols, predictions, scorers, reports."""
