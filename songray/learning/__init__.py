"""From spectrograms to vectors."""
