"""How good the neighbours are. In reading order:

metrics       precision of retrieval by recording, album, artist and genre
intervals     intervals over artists, and paired tests
sample        the tracks on which runs are compared
clusters      agreement of clusters with genres, and the number of clusters
probes        classifiers on frozen vectors, tested on other artists
listeners     agreement with playlists, and their communities
judgements    which runs listeners prefer
sounds        decoded audio of the tracks
space         hubs, near-duplicates, isotropy and dimension
musly         a baseline that has no vectors, but distances
robustness    vectors of changed audio, and what vectors cost
scores        the scores of runs, as tables and sentences
measure       what is measured of runs, part by part
figures       figures as SVG
material      what the figures of a report show
parts         the figures, tables and sounds of a report
seed_figures  the figures of published systems
seeds         five published systems: what their authors found, and what is found here
report        the report as one page
evaluate      the job that compares runs
"""
