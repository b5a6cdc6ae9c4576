"""The builder: Dockerfile to graph to image. Pure: lexer to explain; acting: solver, steps, cache, context, queue, progress."""
