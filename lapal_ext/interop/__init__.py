"""Interfaces of other libraries to the posterior and the selection, one module per library.

Each is imported by name: ``lapal_ext.interop.sklearn`` (needs the extra ``sklearn``), ``lapal_ext.interop.skactiveml``
(extra ``skactiveml``), ``lapal_ext.interop.laplace`` (extra ``laplace``) and ``lapal_ext.interop.label_studio``, which
needs nothing else.
"""
