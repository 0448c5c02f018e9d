"""How good the neighbours are. In reading order:

metrics    precision of retrieval by recording, artist and genre
clusters   agreement of k-means clusters with genres
evaluate   the job that compares runs
"""
