"""From vectors to ranked tracks. In reading order; all but `project`, `build` and `erase` run without Ray:

halves        vectors of length 1, and those stored as float16
graphs        HNSW graphs, in float32 and in 8 bits
hnsw          builds graphs, measures their recall, tunes M
text          text search over titles, artists and albums
tags          tags of the sound: how they are stored, and how well tracks fit a description by them
words         words about music → tags
clusters      clusters of the tracks that a map is fitted to
attributes    attributes of tracks by which a map is coloured
filters       which tracks a query may return
maps          vectors in two dimensions, and how far a map can be trusted
reference     the sample of tracks that a map is fitted to, and where it places others
candidates    what a search in a shard finds: candidates and points, sorted and merged
bitmap        sets of labels as text
version       versions of an index in storage: list, read, publish, prune
rows          the rows of a shard: the catalogue and what is computed of it
shard         one shard of an index, opened for reading
shard_files   writes the files of a shard
index         one version of an index, opened in this process
ranking       ranks the neighbours of seeds
paths         paths between tracks, and continuations of playlists
stored_maps   maps in storage: read, remove
project       the stage: reads embeddings, writes maps
target        the tracks that an index should contain, read from the tables
changes       what is missing in a version, and what is obsolete in it
build         the stage: reads embeddings and tracks, writes a version of an index
erase         removes tracks from the files of an index
"""
