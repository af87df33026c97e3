"""Interfaces of other libraries to the posterior and the selection, one module per library.

Each needs its library and is imported by name: ``lapal_ext.interop.sklearn`` (extra ``sklearn``),
``lapal_ext.interop.skactiveml`` (extra ``skactiveml``) and ``lapal_ext.interop.laplace`` (extra ``laplace``).
"""
