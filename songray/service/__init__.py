"""The Ray Serve application that answers over HTTP. In reading order, those before `slots` without Ray:

options       options of the service
schema        responses of /v1, as the OpenAPI document describes them
parameters    requests of /v1, as the OpenAPI document describes them
problems      errors as problem details
snapshots     versions of an index that are loaded in a process
dependencies  what the routes depend on
responses     bodies of responses
playlists     playlists as M3U8, CSV and XSPF
metrics       metrics for Prometheus
api_keys      API keys, which the driver ships to the replicas, and their comparison
audio         links to audio, which expire
transcode     files that browsers do not play, as MP3
points        points of the map as binary columns
webpage       the page at /, and its Content Security Policy
routes        the routes of /v1 and of operation
opensubsonic  the routes of OpenSubsonic's extension sonicSimilarity
middlewares   security headers, metrics, access log, authentication, limits of bodies
api           the FastAPI application
decoding      the spectrogram of uploaded audio
slots         an index that is spread over processes
uploads       the deployment that embeds uploaded audio; the one module that loads torch
external      previews from external sources
ingress       the deployment that answers HTTP requests
haproxy       the environment that puts HAProxy before the ingress
app           the Ray Serve application

page/ has the files of the page.
"""
