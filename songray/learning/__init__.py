"""From spectrograms to vectors. In reading order:

models     the models, interchangeable behind one interface; their options load without torch
runs       the record of a run
split      which tracks a model learns from, and which validate it
windows    windows of spectrograms, in batches that a model learns from or embeds
scale      the projections that make vectors of a model comparable
fusion     several runs as one: their vectors, weighted and joined
members    the tracks that all members of a joined run have embedded, and the files that hold them
encoder    from spectrograms to the vector of a run, of one model or of several: fitted, stored, used
loop       the loop that trains any model
factorize  stage: playlists → factors of tracks, the targets of one model
targets    the regression targets of a model: factors, or the vectors of another run
feed       stored clips → the batches of a training worker
fit        models without gradients, and the scale of vectors: fitted in one pass over clips
worker     what each worker of Ray Train runs
train      stage: spectrograms → a run
embed      stage: spectrograms and a run → embeddings
fuse       stage: embeddings of several runs → a run
adapt      stage: embeddings of a run, and artists → a run, where held-out artists show a gain

Modules up to `loop` run without Ray; `runs`, `split`, `scale`, `fusion` and `members` also without torch.
"""
