"""Music recommended by how it sounds. In reading order:

library        the map: every table, its columns, its key, the job that fills it
stages         stages do what their output lacks, and sum up what they did
web            the polite client: limits that the whole cluster shares, patience, plain failures
sources        where songs come from: services, a folder, a manifest, a synthesiser
frontier       which pages of a source are still to be read
catalog        source → tracks, artists, playlists
previews       tracks → audio; a failure is a row, not an exception
audio          bytes → mono samples
spectrograms   audio → spectrograms, by a named spec
latents        playlists → collaborative factors of tracks
models         ways from sound to vector, behind one interface
runs           what training leaves behind, and the scale of vectors
segments       spectrograms → the windows that a model asks for; who is held out
loop           the one loop that trains any model, with torch alone
feed           stored clips → the batches of a worker that learns
training       that loop under Ray Train, on any number of workers
embeddings     spectrograms + run → one vector a track
names          titles and artists that a text finds again, whatever its accents and typing errors
shards         vectors and rows → one shard of an index: written, opened, asked
versions       which shards make up an index, and one version of them in memory
index          embeddings and tracks → a new version: build, append, delete, compact
recommender    seeds → ranked tracks
evaluation     how good are the neighbours, against baselines
amendments     tracks taken out, or tried anew
service        the Ray Serve application, and the page that it serves
command        what jobs share: flags, a Ray to run on, errors in a sentence
"""
