"""Trains, judges and describes the model versions that ``triage`` scores with."""
