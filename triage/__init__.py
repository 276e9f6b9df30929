"""cxr-triage: puts chest radiographs that look urgent first in a reading worklist.

A triage aid, not a diagnosis.
"""

__version__ = "0.1.0"
