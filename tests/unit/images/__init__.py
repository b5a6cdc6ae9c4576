"""Tests of the image journeys."""
