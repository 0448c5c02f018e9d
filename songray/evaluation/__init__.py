"""How good the neighbours are. In reading order:

metrics    precision of retrieval by recording, album, artist and genre
intervals  intervals over artists, and paired tests
clusters   agreement of k-means clusters with genres
scores     the scores of runs, as tables and sentences
evaluate   the job that compares runs
"""
