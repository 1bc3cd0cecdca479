"""The service that transcodes films: ``skald run examples.transcoding.app:app --migrate``."""

from __future__ import annotations

from examples.transcoding.transcoding import render, transcode_film
from skald import App, Service

transcoding = Service("transcoding", workflows=[transcode_film, render])
app = App(transcoding)
