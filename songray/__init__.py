"""Music recommended by how it sounds. The ground floor, which everything may import:

errors       every error that songray raises on purpose, as a tree
keys         the key of a track at one revision, and hashes
storage      files that are written whole or not at all, or created exclusively
media        encoded audio as decoders in C read it
leases       one process at a time writes a table, a run or an index
checkpoints  which rows are finished; what songray uses of Ray beyond its public API
cluster      a Ray to run on
upgrades     rows that earlier versions wrote, in the current format
key_index    which file has the rows of each track, by ranges of keys
table        one table of a library
tables       every table: its columns, its key, the job that fills it
library      what a library contains, and where
summary      what a stage did, and whether too much of it failed
stages       what stages from table to table share: pending rows, checkpoints, the lease
web          the HTTP client: cluster-wide rate limits, retries, kinds of errors

Six subpackages; each imports the ground floor and those above it in this list:

catalogue    where tracks come from
audio        from a track to its spectrogram
learning     from spectrograms to vectors
search       from vectors to ranked tracks
evaluation   how good the neighbours are
service      the Ray Serve application, and the page that it serves

and what stands on them:

takedown     what tables hold of removed tracks
amend        tracks that are removed, or processed again
merge        small files of tables become larger ones
pipeline     all stages in order on one machine
jobs         the options and functions of all jobs
command      the command line: `songray`, `python -m songray`, and the scripts in jobs/
"""
