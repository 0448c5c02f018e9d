"""From a track to its spectrogram."""
