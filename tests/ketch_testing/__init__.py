"""Fakes and builders that the tests, the demo and the bench share."""
