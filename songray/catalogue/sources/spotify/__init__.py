"""Spotify, through spotipy."""
