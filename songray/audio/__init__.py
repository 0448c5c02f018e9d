"""From a track to its spectrogram. In reading order; the first three run without Ray:

excerpt        which part of a recording is decoded
spectrograms   samples → spectrograms, and the specs that a model can take
decode         encoded audio → mono samples
fetch          a track's audio over HTTP, within deadlines and rate limits
download       stage: tracks → previews
transform      stage: previews → spectrograms
"""
