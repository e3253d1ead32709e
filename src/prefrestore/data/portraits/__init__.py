"""Procedural portraits: faces drawn by our own renderer, with exact captions and landmarks."""

from prefrestore.data.portraits.captions import caption
from prefrestore.data.portraits.render import Portrait, render, render_traits
from prefrestore.data.portraits.traits import Traits, draw_traits

__all__ = ["Portrait", "Traits", "caption", "draw_traits", "render", "render_traits"]
