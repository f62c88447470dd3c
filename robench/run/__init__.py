"""The one way from what is asked for to a run folder: ``plan`` makes a ``Run`` of a request, ``execute`` measures it at a ``Place``.

The commands come by ``attack``, Python by ``evaluate``, an audit by its experiments; all of them plan and execute.
"""
