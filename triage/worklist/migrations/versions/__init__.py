"""One module per schema revision; never edited after its release."""
