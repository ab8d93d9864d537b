"""Predictors: what a child would score, from what is known before it is trained out."""
