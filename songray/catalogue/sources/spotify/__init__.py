"""Spotify's catalogue, through spotipy. In reading order:

responses    parses responses into contents of pages
app          spotipy with the app's credentials and token
endpoints    the request of each kind of page, and what replaces a refused one
source       the options, and the pages to start from
"""
