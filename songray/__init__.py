"""Music recommended by how it sounds. In reading order:

library      the map: every table, its columns, its key, the job that fills it
stages       stages do what their output lacks, and sum up what they did
web          the polite client: limits that the whole cluster shares, patience, plain failures
catalogue    where songs come from
audio        from a track to its spectrogram
learning     from spectrograms to vectors
search       from vectors to ranked tracks
evaluation   how good the neighbours are
amend        tracks taken out, or tried anew
service      the Ray Serve application, and the page that it serves
command      what jobs share: flags, a Ray to run on, errors in a sentence
"""
