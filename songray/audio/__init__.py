"""From a track to its spectrogram. In reading order; the first four run without Ray:

excerpt        which part of a recording is decoded
spectrograms   samples → spectrograms, and the specs that a model can take
decode         encoded audio → mono samples
inputs         what models take of a recording: spectrograms, or its samples
extract        rows of previews → rows of spectrograms or waveforms, in batches
sets           what a set of spectrograms was made with, and which tracks are in it
fetch          a track's audio over HTTP, within deadlines and rate limits
download       stage: tracks → previews
transform      stage: previews → spectrograms
"""
