"""Reads pages: detect, cut, orient and recognise with PP-OCR weights, as stages of a Headrace graph."""
