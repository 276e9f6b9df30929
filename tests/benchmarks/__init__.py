"""Measurements. Ratios against a named peer in the same run; nothing here passes or fails."""
